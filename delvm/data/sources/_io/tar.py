"""Tars that are not trusted: names are only labels here, never places on disk."""

import re
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from delvm.data.sources.base import distinct
from delvm.errors import UserError

# Of the bytes of a picture: far above any that `images.MAX_PIXELS` lets pass.
MAX_BYTES = 512 * 1024 * 1024
# What opening or reading a damaged tar raises.
DAMAGE = (tarfile.TarError, EOFError, OSError, ValueError, OverflowError)


def tars_in(root: Path) -> dict[str, Path]:
    """The tars below a folder, by names that parts can have.

    Raises:
        UserError: there are none.
    """
    paths = sorted(path for path in root.rglob("*.tar") if not path.name.startswith("."))
    if not paths:
        raise UserError(f"source.path={root} holds no .tar: set source.path=FOLDER")
    stems = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
    return dict(zip(distinct(stems), paths, strict=True))


def scan(
    tar: tarfile.TarFile, wanted: Collection[str], beside: Collection[str] = ()
) -> Iterator[tuple[tarfile.TarInfo, str | None]]:
    """The members of a tar, not read yet.

    Args:
        tar: Opened for reading with seeks ("r:").
        wanted: Suffixes of the files that are looked for.
        beside: Suffixes of those that are passed over.

    Yields:
        (member, why it is not taken, or None); no folders, and none of `beside`.

    Raises:
        One of `DAMAGE`: the tar is damaged, after what could be read of it.
    """
    for info in tar:
        suffix = PurePosixPath(info.name).suffix.lower()
        if not (info.isdir() or (info.isreg() and suffix in beside)):
            yield info, _fault(info, suffix, wanted, beside)
    # tarfile takes a damaged header, or the end of the file, for the end of the tar.
    assert tar.fileobj is not None
    tar.fileobj.seek(tar.offset)
    end = tar.fileobj.read(tarfile.BLOCKSIZE)
    if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
        raise tarfile.ReadError("the mark of a tar's end is missing")


def content(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """What a member holds that `scan` found no fault with.

    Raises:
        One of `DAMAGE`: it is cut short.
    """
    file = tar.extractfile(info)
    return file.read() if file else b""


def damaged(error: Exception) -> str:
    """What to say of one of `DAMAGE`."""
    return f"truncated or damaged: {error}"


def members(
    path: Path, wanted: Collection[str], beside: Collection[str] = ()
) -> Iterator[tuple[str, bytes | str]]:
    """The files of a tar one after another, each held only while it is looked at.

    Args:
        path: Of the tar.
        wanted, beside: As for `scan`.

    Yields:
        (name, its bytes) of a file, (name, what is wrong) of a member that is not taken, and
        ("", what is wrong) where the tar itself is damaged, after what could be read of it.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for info, fault in scan(tar, wanted, beside):
                yield info.name, fault or content(tar, info)
    except DAMAGE as error:
        yield "", damaged(error)


def _fault(
    info: tarfile.TarInfo, suffix: str, wanted: Collection[str], beside: Collection[str]
) -> str | None:
    """Why a member is not taken."""
    # A sparse member may claim a size that no disk holds.
    if not info.isreg() or info.issparse():
        kind = "a link" if info.issym() or info.islnk() else "neither a file nor a link"
        return f"is {'a sparse file' if info.issparse() else kind}"
    if info.name.startswith("/") or ".." in re.split(r"[/\\]", info.name) or "\\" in info.name:
        return "its path leads out of the tar"
    if suffix not in wanted:
        if beside:
            return f"no picture, nor one of {', '.join(sorted(beside))}"
        return f"none of {', '.join(sorted(wanted))}"
    if info.size > MAX_BYTES:
        return f"{info.size:,} bytes, above {MAX_BYTES:,}"
    return None
