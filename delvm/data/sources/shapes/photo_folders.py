"""Photographs in directories of the user's: which are usable, and which are held out.

Whether a photograph is held out depends on a digest of its file, not on its position in a list:
adding, renaming or moving photographs moves no other one between training and the held-out ones,
and identical copies of a file stay together.
"""

import json
import math
import stat
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from delvm.data.image_io import open_image, stored_size
from delvm.data.sources.base import image_files, to_bytes, to_reject
from delvm.data.sources.shapes.photo_pool import (
    MAX_SHORT_SIDE,
    LoadedPhoto,
    has_no_colors,
    shrink,
)
from delvm.errors import UserError
from delvm.progress import Progress, log
from delvm.storage import StoragePath, write_text
from delvm.untrusted import parse_json

MIN_PHOTOGRAPHS = 2  # of training, and held out
MIN_SHORT_SIDE = 16
CACHE_BYTES = 256 * 2**20  # of decoded photographs
_HEAD_BYTES = 65_536
_ROW = {"file": str, "bytes": int, "split?": str, "reason?": str}
_ROW_KEYS = {"file", "bytes", "split", "reason"}  # of a photograph found unreadable when sampled


class _IndexedFile(NamedTuple):
    """A file that may be a photograph.

    Attributes:
        folder: one of the directories, as it was given.
        below: its path below that, with slashes.
        version: its size and time.
        hashed: a number in [0, 1) made of its contents.
        reason: why it cannot be used; "" if it can.
    """

    folder: str
    below: str
    version: tuple[int, int] = (0, 0)
    hashed: float = 0.0
    reason: str = ""

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self.folder, self.below)


class PhotoFolders:
    """The photographs below some directories; only those in use are in memory."""

    def __init__(self, folders: Sequence[str], held_out: float) -> None:
        """Nothing is read yet.

        Args:
            folders: at least one.
            held_out: fraction of the photographs.
        """
        self.folders, self.held_out = folders, held_out
        self.unreadable: dict[Path, str] = {}  # when they were sampled: path -> reason
        self._decoded: OrderedDict[Path, LoadedPhoto] = OrderedDict()
        self._bytes = 0
        self._recorded: int | None = None  # entries of `unreadable` in the record
        self._found_before: dict[tuple[str, int], str] = {}  # name and size -> reason

    @cached_property
    def _files(self) -> list[_IndexedFile]:
        """Every file that may be a photograph, with what its header states."""
        found = [
            (folder, path.relative_to(folder).as_posix())
            for folder in self.folders
            for path in _image_files(folder)
        ]
        progress = Progress(len(found), "prepare", "photographs listed")
        files = []
        with progress:
            for folder, below in found:
                files.append(_index(folder, below))
                progress.update()
        usable = [file for file in files if not file.reason]
        rejects = [file for file in files if file.reason]
        self._require_enough(usable, rejects)
        held_out = sum(self._is_held_out(file) for file in usable)
        log(
            f"prepare: {len(usable):,} photographs in {', '.join(self.folders)}: "
            f"{len(usable) - held_out:,} of training, {held_out:,} held out, "
            f"{len(rejects):,} other files that cannot be used"
        )
        return files

    def _is_held_out(self, file: _IndexedFile) -> bool:
        return file.hashed < self.held_out

    def _require_enough(
        self, usable: Sequence[_IndexedFile], rejects: Sequence[_IndexedFile]
    ) -> None:
        """Refuse too few photographs of training, or held out.

        Raises:
            UserError: both numbers, and the fraction that would do.
        """
        where, least = ",".join(self.folders), MIN_PHOTOGRAPHS
        if len(usable) < 2 * least:
            first = f" (of {rejects[0].below}: {rejects[0].reason})" if rejects else ""
            raise UserError(
                f"source.photographs={where} has {len(usable)} photographs that can be read and "
                f"{len(rejects)} files that cannot{first}, at least {2 * least} are needed: set "
                "source.photographs=DIR to more"
            )
        held_out = sum(map(self._is_held_out, usable))
        if least <= held_out <= len(usable) - least:
            return
        # Those below a fraction are held out, so it has to be above one number and not the next.
        hashes = sorted(file.hashed for file in usable)
        number = least if held_out < least else len(usable) - least
        below, above = hashes[number - 1], hashes[number]
        middle = (below + above) / 2
        rounded = (round(middle, digits) for digits in range(1, 10))
        fraction = next((each for each in rounded if below < each <= above), None)
        hint = "" if fraction is None else f", or source.held_out_photographs={fraction:g}"
        raise UserError(
            f"source.photographs={where} has {len(usable) - held_out} photographs of training and "
            f"{held_out} held out by source.held_out_photographs={self.held_out:g}, of each "
            f"{least} are needed: set source.photographs=DIR to more{hint}"
        )

    def photos(self, held_out: bool) -> list["FolderPhoto"]:
        """The photographs of training, or those held out.

        Raises:
            UserError: a directory is missing or has no images, or there are too few.
        """
        return [
            FolderPhoto(file, self)
            for file in self._files
            if not file.reason and self._is_held_out(file) == held_out
        ]

    def digest(self, held_out: bool) -> str:
        """Of the names, sizes and times of `photos`; the same where a directory is moved."""
        digest = blake2b(digest_size=8)
        for photo in self.photos(held_out):
            size, time = photo.file.version
            digest.update(to_bytes(f"{photo.file.below}\0{size} {time}\0"))
        return digest.hexdigest()

    def load(self, file: _IndexedFile) -> LoadedPhoto | None:
        """A photograph, from memory or its file; None if it cannot be read."""
        path = file.path
        if path in self._decoded:
            self._decoded.move_to_end(path)
            return self._decoded[path]
        if path in self.unreadable:
            return None
        try:
            image = shrink(open_image(path, str(path), MAX_SHORT_SIDE))
        except UserError as error:
            self.unreadable[path] = to_reject(str(path), error).reason
            log(f"prepare: photograph {error}; another one is sampled")
            return None
        photo = self._decoded[path] = LoadedPhoto(image, has_no_colors(image))
        self._bytes += _size(photo)
        while self._bytes > CACHE_BYTES and len(self._decoded) > 1:
            self._bytes -= _size(self._decoded.popitem(last=False)[1])
        return photo

    def write_record(self, path: StoragePath) -> None:
        """Write the split of each file, unless that has been written.

        Lines are {"file", "bytes", "split"}, of "train" or "held_out"; with a "reason" too if the
        photograph was found unreadable when it was sampled, also by an earlier run; and with a
        reason alone if it is in no split.
        """
        if self._recorded is None:
            self._found_before = _recorded_reasons(path)
        elif self._recorded == len(self.unreadable):
            return
        write_text(path, "".join(json.dumps(row) + "\n" for row in self._rows()))
        self._recorded = len(self.unreadable)

    def _rows(self) -> Iterator[dict[str, Any]]:
        for file in self._files:
            name, size = str(file.path), file.version[0]
            row = {"file": name, "bytes": size}
            if file.reason:
                yield row | {"reason": file.reason}
                continue
            row["split"] = "held_out" if self._is_held_out(file) else "train"
            reason = self.unreadable.get(file.path) or self._found_before.get((name, size))
            yield row | ({"reason": reason} if reason else {})


class FolderPhoto(NamedTuple):
    """A photograph of `PhotoFolders`; a `Photo`."""

    file: _IndexedFile
    folders: PhotoFolders

    @property
    def weight(self) -> float:
        """Each is sampled equally often."""
        return 1.0

    def load(self) -> LoadedPhoto | None:
        """The photograph; None if its file cannot be read, which has been recorded."""
        return self.folders.load(self.file)


def _recorded_reasons(path: StoragePath) -> dict[tuple[str, int], str]:
    """Name and size of each file that was found unreadable when it was sampled, with the reason."""
    if not path.exists():
        return {}
    rows = (
        parse_json(line, f"{path} line {number}", _ROW)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    )
    return {(row["file"], row["bytes"]): row["reason"] for row in rows if row.keys() == _ROW_KEYS}


def _size(photo: LoadedPhoto) -> int:
    return 3 * math.prod(photo.image.size)


def _image_files(folder: str) -> list[Path]:
    if not Path(folder).is_dir():
        raise UserError(
            f"source.photographs={folder} is not a directory: set source.photographs=DIR, or "
            "packages for those that ship inside packages"
        )
    if not (found := image_files(Path(folder))):
        raise UserError(
            f"source.photographs={folder} contains no images: set source.photographs=DIR"
        )
    return found


def _index(folder: str, below: str) -> _IndexedFile:
    """What the first bytes of a file state; it is not trusted."""
    found = _IndexedFile(folder, below)
    path = found.path
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a named pipe would never end
            return found._replace(reason="not a file")
        found = found._replace(version=(status.st_size, status.st_mtime_ns))
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
        width, height = stored_size(path, str(path))
    except OSError as error:
        return found._replace(reason=str(error.strerror))
    except UserError as error:
        return found._replace(reason=to_reject(str(path), error).reason)
    if min(width, height) < MIN_SHORT_SIDE:
        return found._replace(reason=f"{width} x {height} pixels, a side below {MIN_SHORT_SIDE}")
    digest = blake2b(head + str(status.st_size).encode(), digest_size=8).digest()
    return found._replace(hashed=int.from_bytes(digest, "little") / 2**64)
