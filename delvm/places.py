"""Places that hold files: folders of this machine, and stores that are reached by a URL.

Local places are plain `pathlib.Path`s. A `Remote` has those of their methods that shards need, over
whatever fsspec reaches: s3://, gs://, memory:// (this process alone) and others. In such a store
folders come and go with their files, and a file that is put appears whole or not at all.
"""

import fnmatch
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from delvm.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[^:]+)*://")
# Stores in which a file is not seen before it is complete; elsewhere it is put beside and moved.
_WHOLE = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory"}

P = ParamSpec("P")
T = TypeVar("T")


def _told(
    method: Callable[Concatenate["Remote", P], T],
) -> Callable[Concatenate["Remote", P], T]:
    """What a store's own library raises beside OSError is told in one line."""

    @functools.wraps(method)
    def told(self: "Remote", *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except (OSError, UserError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.url} cannot be reached: {reason}") from error

    return told


@dataclass(frozen=True, order=True)
class Remote:
    """A file or a folder of a store, by its URL; pickles as that alone."""

    url: str

    def __post_init__(self) -> None:
        head, mark, rest = self.url.rpartition("://")
        object.__setattr__(self, "url", head + mark + re.sub("/+", "/", rest).rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "Remote":
        return Remote(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name up to its last dot."""
        return Path(self.name).stem

    def resolve(self) -> "Remote":
        """Itself: a URL is absolute."""
        return self

    @_told
    def exists(self) -> bool:
        """Whether a file or a folder is there."""
        fs, path = self._open()
        return bool(fs.exists(path))

    @_told
    def is_dir(self) -> bool:
        """Whether anything lies below."""
        fs, path = self._open()
        return bool(fs.isdir(path))

    @_told
    def _names(self) -> list[str]:
        fs, path = self._open()
        try:
            found = fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted({each.rstrip("/").rpartition("/")[2] for each in found})

    def iterdir(self) -> Iterator["Remote"]:
        """What lies in a folder, in the order of the names; nothing where there is no folder."""
        return (self / name for name in self._names())

    def glob(self, pattern: str) -> Iterator["Remote"]:
        """What lies in a folder and is called like a pattern without slashes."""
        return (each for each in self.iterdir() if fnmatch.fnmatchcase(each.name, pattern))

    @_told
    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole text of a file."""
        fs, path = self._open()
        return bytes(fs.cat_file(path)).decode(encoding)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as a file is put below it."""

    @_told
    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""
        fs, path = self._open()
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    @_told
    def remove_tree(self) -> None:
        """Remove a folder and all below, if it is there."""
        fs, path = self._open()
        if fs.isdir(path):
            fs.rm(path, recursive=True)

    @_told
    def put(self, file: Path) -> None:
        """Make this a copy of a local file; whole or not at all."""
        fs, path = self._open()
        kinds = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if kinds & _WHOLE:
            fs.put_file(str(file), path)
            return
        folder, _, name = path.rpartition("/")
        beside = f"{folder}/.{name}.part"
        try:
            fs.makedirs(folder, exist_ok=True)
            fs.put_file(str(file), beside)
            fs.mv(beside, path)
        except BaseException:
            if fs.exists(beside):
                fs.rm_file(beside)
            raise

    @_told
    def get(self, file: Path) -> None:
        """Copy this to a local file."""
        fs, path = self._open()
        fs.get_file(path, str(file))

    @_told
    def version(self) -> str:
        """A name that changes whenever the file does."""
        fs, path = self._open()
        return str(fs.ukey(path))

    def _open(self) -> tuple[Any, str]:
        """The store, and this path in it.

        Raises:
            UserError: no store of that kind is known, or the package for it is not installed.
        """
        import fsspec.core

        try:
            # Other processes write to the store too: what it listed before is no answer.
            fs, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.url} cannot be reached: {error}") from None
        return fs, str(path)


Place = Path | Remote


def place(where: str | Path | Remote) -> Place:
    """A path of this machine, or a URL, as a place; file:// is a path of this machine."""
    if not isinstance(where, str):
        return where
    if where.startswith("file://"):
        return Path(where.removeprefix("file://"))
    return Remote(where) if _URL.match(where) else Path(where)


def absolute(where: Place) -> Place:
    """The same place for a process that works in another folder."""
    return where if isinstance(where, Remote) else where.absolute()
