"""Pictures in tars as img2dataset writes them: LAION and whatever else it has fetched."""

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from delvm.data.examples import Example, Part, Reject
from delvm.data.images import fit, open_image
from delvm.data.sources.base import PICTURES, RawSource, check_split, distinct, plain, rejected
from delvm.errors import UserError

# What img2dataset writes beside a picture: its caption and what else is known of it.
BESIDE = frozenset((".json", ".txt"))
# Of the bytes of a picture: far above any that MAX_PIXELS lets pass.
MAX_BYTES = 512 * 1024 * 1024


@dataclass
class Laion(RawSource):
    """NNNNN.tar with KEY.jpg (or webp, png), KEY.json and KEY.txt.

    Tars are read as streams, and nothing is unpacked. A picture's split is drawn by its tar and
    name, so each tar holds all the splits and is read once for each.

    Attributes:
        min_side: pictures with a shorter side are rejected; 0 takes all.
    """

    name: str = "laion"
    min_side: int = 0

    def parts(self, split: str) -> dict[str, list[Part]]:
        """A part for each tar, called as it is."""
        check_split(split)
        return {"images": [Part(name) for name in self._tars]}

    def read(self, split: str, task: str, part: Part) -> Iterator[Example | Reject]:
        """The pictures of a tar that belong to the split, and what had to be left out."""
        path = self._tars[part.name]
        tar = path.relative_to(self.root()).as_posix()
        keys: set[str] = set()
        for name, content in members(path):
            whole = f"{tar}/{name}" if name else tar
            if self.split_of(whole.rpartition(".")[0] if name else tar) != split:
                continue
            if isinstance(content, str):
                yield Reject(whole, content)
                continue
            key = plain(part.name, *PurePosixPath(name).with_suffix("").parts)
            try:
                picture = self._picture(content, whole)
            except UserError as error:
                yield rejected(whole, error)
                continue
            if key in keys:
                yield Reject(whole, f"its key {key} comes twice")
                continue
            keys.add(key)
            yield Example(key, task, (picture,))

    def _picture(self, content: bytes, name: str) -> np.ndarray:
        image = open_image(content, name)
        if min(image.size) < self.min_side:
            width, height = image.size
            raise UserError(f"{width} x {height} pixels, below min_side={self.min_side}")
        return np.asarray(fit(image, self.size))

    @cached_property
    def _tars(self) -> dict[str, Path]:
        """The tars below the root, by the names of their parts."""
        root = self.root()
        paths = sorted(path for path in root.rglob("*.tar") if not path.name.startswith("."))
        if not paths:
            raise UserError(f"source.path={self.path} holds no .tar: set source.path=FOLDER")
        stems = [path.relative_to(root).with_suffix("").as_posix() for path in paths]
        return dict(zip(distinct(stems), paths, strict=True))


def members(path: Path) -> Iterator[tuple[str, bytes | str]]:
    """The pictures in a tar, which is not trusted.

    Names are only labels here, never places on disk.

    Yields:
        (name, the file's bytes) of a picture, (name, what is wrong) of a member that is none, and
        ("", what is wrong) where the tar itself is damaged, after what could be read of it.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                suffix = PurePosixPath(info.name).suffix.lower()
                if info.isdir() or (info.isreg() and suffix in BESIDE):
                    continue
                fault = _fault(info, suffix)
                file = None if fault else tar.extractfile(info)
                yield info.name, fault or (file.read() if file else b"")
            # tarfile takes a damaged header, or the end of the file, for the end of the tar.
            assert tar.fileobj is not None
            tar.fileobj.seek(tar.offset)
            end = tar.fileobj.read(tarfile.BLOCKSIZE)
            if len(end) < tarfile.BLOCKSIZE or end.strip(b"\0"):
                yield "", "truncated or damaged: the mark of a tar's end is missing"
    except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
        yield "", f"truncated or damaged: {error}"


def _fault(info: tarfile.TarInfo, suffix: str) -> str | None:
    """Why a member is not taken for a picture."""
    # A sparse member may claim a size that no disk holds.
    if not info.isreg() or info.issparse():
        kind = "a link" if info.issym() or info.islnk() else "neither a file nor a link"
        return f"is {'a sparse file' if info.issparse() else kind}"
    if info.name.startswith("/") or ".." in re.split(r"[/\\]", info.name) or "\\" in info.name:
        return "its path leads out of the tar"
    if suffix not in PICTURES:
        return f"no picture, nor one of {', '.join(sorted(BESIDE))}"
    if info.size > MAX_BYTES:
        return f"{info.size:,} bytes, above {MAX_BYTES:,}"
    return None
