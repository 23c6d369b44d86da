"""Tars that are not trusted: names of members are only labels, never paths on disk."""

import re
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from delvm.data.file_kinds import describe_file
from delvm.data.sources._io.walk import walk
from delvm.data.sources.base import unique_keys
from delvm.errors import UserError

# Far above the file size of any image within `image_io.MAX_PIXELS`.
MAX_BYTES = 512 * 1024 * 1024
_TAR_NAME = re.compile(r"\.(tar(\.(gz|bz2|xz|zst))?|tgz|tbz2?|txz)$", re.IGNORECASE)
# What opening or reading a damaged tar raises.
TAR_ERRORS = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError)


def find_tars(root: Path) -> dict[str, Path]:
    """The tars below a directory, by names that chunks can have.

    Compressed ones are among them, so that they are rejected with a reason.

    Raises:
        UserError: there are none.
    """
    paths = sorted(
        path for path in walk(root) if _TAR_NAME.search(path.name) and not path.name.startswith(".")
    )
    if not paths:
        raise UserError(f"source.path={root} contains no .tar: set source.path=DIR")
    names = [path.relative_to(root) for path in paths]
    # Of compressed ones the suffix stays, so that a.tgz does not take the name of a.tar.
    stems = [name.with_suffix("") if name.suffix.lower() == ".tar" else name for name in names]
    return dict(zip(unique_keys([stem.as_posix() for stem in stems]), paths, strict=True))


def scan_members(
    tar: tarfile.TarFile, suffixes: Collection[str], ignored: Collection[str] = ()
) -> Iterator[tuple[tarfile.TarInfo, str | None]]:
    """The members of a tar, without reading them.

    Args:
        tar: Opened for reading with seeks ("r:").
        suffixes: Of the files to take.
        ignored: Suffixes of files that are skipped silently.

    Yields:
        (member, why it is rejected or None); no directories, no hidden files (tars made on a Mac
        have one for each file), and none of `ignored`.

    Raises:
        One of `TAR_ERRORS`: the tar is damaged, after what could be read of it.
    """
    for info in tar:
        path = PurePosixPath(info.name)
        suffix, hidden = path.suffix.lower(), path.name.startswith(".")
        if not (info.isdir() or (info.isreg() and (hidden or suffix in ignored))):
            yield info, _reject_reason(info, suffix, suffixes, ignored)
    # tarfile takes a damaged header, or the end of the file, for the end of the tar.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise tarfile.ReadError("the end-of-archive marker is missing")


def read_member(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """The content of a member that `scan_members` did not reject.

    Raises:
        One of `TAR_ERRORS`: it is truncated.
    """
    file = tar.extractfile(info)
    return file.read() if file else b""


def format_error(error: Exception, path: Path | None = None) -> str:
    """The reason for rejecting a file that raised one of `TAR_ERRORS`.

    Args:
        error: what it raised.
        path: of a tar that may be of another kind than its name promises.
    """
    known = describe_file(path) if path else None
    return known or f"truncated or damaged: {error}"


def iter_members(
    path: Path, suffixes: Collection[str], ignored: Collection[str] = ()
) -> Iterator[tuple[str, bytes | str]]:
    """The files of a tar one after another, without keeping them in memory.

    Args:
        path: Of the tar.
        suffixes, ignored: As for `scan_members`.

    Yields:
        (name, content) of a file, (name, reason) of a rejected member, and ("", reason) if the tar
        itself is damaged, after what could be read of it.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for info, reason in scan_members(tar, suffixes, ignored):
                yield info.name, reason or read_member(tar, info)
    except TAR_ERRORS as error:
        yield "", format_error(error, path)


def _reject_reason(
    info: tarfile.TarInfo, suffix: str, suffixes: Collection[str], ignored: Collection[str]
) -> str | None:
    """Why a member is rejected, or None."""
    # A sparse member may claim a size that no disk has.
    if not info.isreg() or info.issparse():
        kind = "a link" if info.issym() or info.islnk() else "neither a file nor a link"
        return f"is {'a sparse file' if info.issparse() else kind}"
    if info.name.startswith("/") or ".." in re.split(r"[/\\]", info.name) or "\\" in info.name:
        return "its path leads out of the tar"
    if suffix not in suffixes:
        if ignored:
            return f"neither an image nor one of {', '.join(sorted(ignored))}"
        return f"none of {', '.join(sorted(suffixes))}"
    if info.size > MAX_BYTES:
        return f"{info.size:,} bytes, above {MAX_BYTES:,}"
    return None
