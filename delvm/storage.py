"""Paths on local disk or in object stores, and atomic writes to either.

A local path is a plain `pathlib.Path`. A `RemotePath` has the methods of it that shards need, for
whatever fsspec reaches: s3://, gs://, memory:// (one process only) and others. In such a store a
directory exists as long as there is a file in it, and a file is written completely or not at all.
"""

import fnmatch
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from delvm.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[^:]+)*://")
# Stores in which a file is not seen before it is complete; elsewhere it is put beside and moved.
_ATOMIC_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory"}

P = ParamSpec("P")
T = TypeVar("T")


def _wrap_errors(
    method: Callable[Concatenate["RemotePath", P], T],
) -> Callable[Concatenate["RemotePath", P], T]:
    """What a store's own library raises beside OSError is told in one line."""

    @functools.wraps(method)
    def told(self: "RemotePath", *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except (OSError, UserError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.url} cannot be reached: {reason}") from error

    return told


@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or a folder of a store, by its URL; pickles as that alone."""

    url: str

    def __post_init__(self) -> None:
        head, mark, rest = self.url.rpartition("://")
        object.__setattr__(self, "url", head + mark + re.sub("/+", "/", rest).rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last part of the URL."""
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        """The name up to its last dot."""
        return Path(self.name).stem

    def resolve(self) -> "RemotePath":
        """Itself: a URL is absolute."""
        return self

    @_wrap_errors
    def exists(self) -> bool:
        """Whether a file or a folder is there."""
        fs, path = self._open()
        return bool(fs.exists(path))

    @_wrap_errors
    def is_dir(self) -> bool:
        """Whether anything lies below."""
        fs, path = self._open()
        return bool(fs.isdir(path))

    @_wrap_errors
    def _names(self) -> list[str]:
        fs, path = self._open()
        try:
            found = fs.ls(path, detail=False)
        except FileNotFoundError:
            return []
        return sorted({each.rstrip("/").rpartition("/")[2] for each in found})

    def iterdir(self) -> Iterator["RemotePath"]:
        """What lies in a folder, in the order of the names; nothing where there is no folder."""
        return (self / name for name in self._names())

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """What lies in a folder and is called like a pattern without slashes."""
        return (each for each in self.iterdir() if fnmatch.fnmatchcase(each.name, pattern))

    @_wrap_errors
    def read_text(self, encoding: str = "utf-8") -> str:
        """The whole text of a file."""
        fs, path = self._open()
        return bytes(fs.cat_file(path)).decode(encoding)

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: a folder is there as soon as a file is put below it."""

    @_wrap_errors
    def unlink(self, missing_ok: bool = False) -> None:
        """Remove a file."""
        fs, path = self._open()
        try:
            fs.rm_file(path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    @_wrap_errors
    def remove_tree(self) -> None:
        """Remove a folder and all below, if it is there."""
        fs, path = self._open()
        if fs.isdir(path):
            fs.rm(path, recursive=True)

    @_wrap_errors
    def put(self, file: Path) -> None:
        """Make this a copy of a local file; whole or not at all."""
        fs, path = self._open()
        kinds = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if kinds & _ATOMIC_STORES:
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

    @_wrap_errors
    def get(self, file: Path) -> None:
        """Copy this to a local file."""
        fs, path = self._open()
        fs.get_file(path, str(file))

    @_wrap_errors
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


StoragePath = Path | RemotePath


def as_path(where: str | Path | RemotePath) -> StoragePath:
    """A path of this machine, or a URL, as a place; file:// is a path of this machine."""
    if not isinstance(where, str):
        return where
    if where.startswith("file://"):
        return Path(where.removeprefix("file://"))
    return RemotePath(where) if _URL.match(where) else Path(where)


def absolute_path(where: StoragePath) -> StoragePath:
    """The same place for a process that works in another folder."""
    return where if isinstance(where, RemotePath) else where.absolute()


@contextmanager
def atomic_path(path: str | StoragePath) -> Iterator[Path]:
    """A temporary name beside ``path`` to write a file to.

    On success it is renamed to ``path``; on any failure it is removed and what stood at
    ``path`` before is untouched. The suffix is kept, since writers choose a format by it. For a
    file of a store it is a temporary file of this machine, which is put there on success.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory(prefix="delvm-") as folder:
            part = Path(folder) / path.name
            yield part
            path.put(part)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of other machines may write the same file, and have the same number.
    part = path.with_name(f".{path.stem}.{os.getpid()}-{os.urandom(4).hex()}.part{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, renamed to ``path`` on success.

    A folder that stood there is replaced only once the new one is complete.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    try:
        yield part
        if path.exists():
            os.replace(path, old)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def remove_tree(path: StoragePath) -> None:
    """Remove a folder and all below, if it is there."""
    if isinstance(path, RemotePath):
        path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def cache_dir() -> Path:
    """Where stays what can be made again: ``$DELVM_CACHE``, by default ``~/.cache/delvm``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "delvm"
    return Path(os.environ.get("DELVM_CACHE") or default)


def local_copy(path: StoragePath) -> Path:
    """A file of this machine with what is at ``path``: itself, or a copy of what a store holds.

    Copies stay in `cache_dir`, each fetched once, and again when the store has another version;
    nothing removes them.

    Raises:
        FileNotFoundError: the store has no such file.
    """
    if isinstance(path, Path):
        return path
    digest = hashlib.sha256(f"{path.url} {path.version()}".encode()).hexdigest()
    copy = cache_dir() / digest[:2] / f"{digest[2:32]}-{path.name}"
    if not copy.exists():
        with atomic_path(copy) as part:
            path.get(part)
    return copy


def remove(path: Path) -> None:
    """Remove a file or a whole folder of this machine, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | StoragePath, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | StoragePath, value: Any) -> None:
    """Write JSON, indented and with a final newline, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | StoragePath, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        what: what the file should be, for the message ("tokenizer config").

    Raises:
        UserError: the file is missing, is not JSON, or is not an object.
    """
    try:
        value = json.loads(as_path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{what} {path} holds a {type(value).__name__}, not an object")
    return value


def require_path(path: str | Path, what: str, override: str) -> Path:
    """The path, if something is there.

    Raises:
        UserError: nothing is there; the message ends with the override to type.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{what} not found: {path} (set {override})")
    return path
