"""What a file is that cannot be read as what its name promises, from its first bytes."""

from pathlib import Path

HEAD_BYTES = 64  # as many as `describe_head` looks at

_LFS = b"version https://git-lfs.github.com/spec/"
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\x00": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))


def describe_head(head: bytes) -> str | None:
    """What is known of a file that could not be read, or None.

    Args:
        head: its first `HEAD_BYTES` bytes.
    """
    if head.startswith(_LFS):
        return "a git-lfs pointer, not the file itself: run `git lfs pull`"
    for magic, (kind, command) in _COMPRESSED.items():
        if head.startswith(magic):
            return f"compressed with {kind}: decompress it first ({command})"
    brand = head[8:12] if head[4:8] == b"ftyp" else b""
    if brand in _HEIF_BRANDS:
        return "HEIC, which PIL reads with the package pillow-heif: run `pip install pillow-heif`"
    if brand in _AVIF_BRANDS:
        return "AVIF, which this build of PIL does not read: run `pip install -U pillow`"
    if head.startswith((b"\xff\x0a", b"\x00\x00\x00\x0cJXL ")):
        return "JPEG XL, which PIL does not read: convert it to another format"
    return None


def describe_file(path: Path) -> str | None:
    """`describe_head` of a file; None also if it cannot be opened."""
    try:
        with path.open("rb") as file:
            return describe_head(file.read(HEAD_BYTES))
    except OSError:
        return None
