"""Paths on local disk or in object stores, and atomic writes to either.

A local path is a plain `pathlib.Path`. A `RemotePath` has the methods of it that shards need, for
whatever fsspec reaches: s3://, gs://, memory:// (one process only) and others. In such a store a
directory exists as long as there is a file in it, and a file is written completely or not at all.
"""

import fnmatch
import functools
import glob
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
from typing import Any, Concatenate, ParamSpec, TypeAlias, TypeVar

from delvm.errors import UserError
from delvm.untrusted import Schema, parse_json

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::[^:]+)*://")
# Stores in which a file cannot be seen before it is complete; elsewhere it is moved into place.
_ATOMIC_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oci", "oss", "memory"}

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

P = ParamSpec("P")
T = TypeVar("T")


def _wrap_errors(
    method: Callable[Concatenate["RemotePath", P], T],
) -> Callable[Concatenate["RemotePath", P], T]:
    """Turn what a store's own library raises, other than OSError, into a one-line UserError."""

    @functools.wraps(method)
    def wrapped(self: "RemotePath", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(self, *args, **kwargs)
        except (OSError, UserError):
            raise
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.url} cannot be reached: {reason}") from error

    return wrapped


# Not universal-pathlib's UPath. It has the reading methods, but not an atomic upload, a version of
# a file or errors in one line; its mkdir may create a bucket; and "a//b" is not "a/b" to it. Those
# are most of this class, and each of its methods would need the same wrapper.
@dataclass(frozen=True, order=True)
class RemotePath:
    """A file or a directory of a store, by its URL; pickles as the URL alone."""

    url: str

    def __post_init__(self) -> None:
        head, separator, rest = self.url.rpartition("://")
        object.__setattr__(self, "url", head + separator + re.sub("/+", "/", rest).rstrip("/"))

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> "RemotePath":
        return RemotePath(f"{self.url}/{name}")

    @property
    def name(self) -> str:
        """The last component of the URL."""
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
        """Whether there is a file or a directory."""
        fs, path = self._open()
        return bool(fs.exists(path))

    @_wrap_errors
    def is_dir(self) -> bool:
        """Whether there is any file below this path."""
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
        """The entries of a directory, sorted by name; none if there is no directory."""
        return (self / name for name in self._names())

    def glob(self, pattern: str) -> Iterator["RemotePath"]:
        """The entries of a directory whose name matches a pattern without slashes."""
        return (each for each in self.iterdir() if fnmatch.fnmatchcase(each.name, pattern))

    @_wrap_errors
    def read_text(self, encoding: str = "utf-8") -> str:
        """The text of a file."""
        fs, path = self._open()
        return bytes(fs.cat_file(path)).decode(encoding)

    @_wrap_errors
    def read_bytes(self) -> bytes:
        """The contents of a file."""
        fs, path = self._open()
        return bytes(fs.cat_file(path))

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a directory exists as soon as there is a file below it."""

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
        """Remove a directory and everything below it, if it exists."""
        fs, path = self._open()
        if fs.isdir(path):
            fs.rm(path, recursive=True)

    @_wrap_errors
    def put(self, file: Path) -> None:
        """Upload a local file to this path, atomically."""
        fs, path = self._open()
        protocols = {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
        if protocols & _ATOMIC_STORES:
            fs.put_file(str(file), path)
            return
        folder, _, name = path.rpartition("/")
        tmp = f"{folder}/.{name}.part"
        try:
            fs.makedirs(folder, exist_ok=True)
            fs.put_file(str(file), tmp)
            fs.mv(tmp, path)
        except BaseException:
            if fs.exists(tmp):
                fs.rm_file(tmp)
            raise

    @_wrap_errors
    def get(self, file: Path) -> None:
        """Download this file to a local one."""
        fs, path = self._open()
        fs.get_file(path, str(file))

    @_wrap_errors
    def version(self) -> str:
        """A string that changes whenever the file does."""
        fs, path = self._open()
        return str(fs.ukey(path))

    def _open(self) -> tuple[Any, str]:
        """The file system, and this path in it.

        Raises:
            UserError: The protocol is unknown, or the package for it is not installed.
        """
        import fsspec.core

        try:
            # Other processes write to the store too, so earlier listings may be out of date.
            fs, path = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise UserError(f"{self.url} cannot be reached: {error}") from None
        return fs, str(path)


StoragePath: TypeAlias = Path | RemotePath


def as_path(where: str | StoragePath) -> StoragePath:
    """A local path or a URL as a path object; file:// is a local path."""
    if not isinstance(where, str):
        return where
    if where.startswith("file://"):
        return Path(where.removeprefix("file://"))
    return RemotePath(where) if _URL.match(where) else Path(where)


def is_url(where: str) -> bool:
    """Whether a path is written as a URL, one of a local file (file://) included."""
    return bool(_URL.match(where))


def absolute_path(where: StoragePath) -> StoragePath:
    """The same path for a process with another working directory."""
    return where if isinstance(where, RemotePath) else where.absolute()


@contextmanager
def atomic_path(path: str | StoragePath) -> Iterator[Path]:
    """A temporary file name next to ``path``, which becomes ``path`` on success.

    On any failure it is removed, and an earlier file at ``path`` is untouched. The suffix is kept,
    since writers choose a format by it. For a remote path it is a local temporary file, which is
    uploaded on success.
    """
    path = as_path(path)
    if isinstance(path, RemotePath):
        with tempfile.TemporaryDirectory(prefix="delvm-") as folder:
            tmp = Path(folder) / path.name
            yield tmp
            path.put(tmp)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes on other machines may write the same file, and have the same process id.
    tmp = path.with_name(f".{path.stem}.{os.getpid()}-{os.urandom(4).hex()}.part{path.suffix}")
    try:
        yield tmp
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def remove_parts(path: Path) -> None:
    """Remove what killed processes have left of `atomic_path` at this local path."""
    name = glob.escape(path.stem)
    for part in path.parent.glob(f".{name}.[0-9]*-*.part{path.suffix}"):
        part.unlink(missing_ok=True)


def remove_tree(path: StoragePath) -> None:
    """Remove a directory and everything below it, if it exists."""
    if isinstance(path, RemotePath):
        path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def cache_dir() -> Path:
    """Directory for data that can be regenerated: ``$DELVM_CACHE``, or ``~/.cache/delvm``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "delvm"
    return Path(os.environ.get("DELVM_CACHE") or default)


def local_copy(path: StoragePath) -> Path:
    """A local file with the contents of ``path``: itself, or a copy of a remote file.

    Copies are kept in `cache_dir`. A file is downloaded once, and again when the store has another
    version of it; nothing removes old copies.

    Raises:
        FileNotFoundError: The store has no such file.
    """
    if isinstance(path, Path):
        return path
    digest = hashlib.sha256(f"{path.url} {path.version()}".encode()).hexdigest()
    copy = cache_dir() / digest[:2] / f"{digest[2:32]}-{path.name}"
    if not copy.exists():
        with atomic_path(copy) as tmp:
            path.get(tmp)
    return copy


def remove(path: Path) -> None:
    """Remove a local file, or a local directory with everything in it, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | StoragePath, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic_path(path) as tmp:
        tmp.write_text(text, encoding="utf-8")


def write_json(path: str | StoragePath, value: Any) -> None:
    """Write JSON atomically, indented and with a final newline."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | StoragePath, what: str, schema: Schema = dict) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.
        what: What the file should be, for messages ("tokenizer config").
        schema: Of the object, see `delvm.untrusted`; by default any.

    Raises:
        UserError: The file is missing, is not JSON, or does not fit the schema.
    """
    try:
        text = as_path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{what} not found: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{what} {path} cannot be read: {error}") from None
    value: dict[str, Any] = parse_json(text, f"{what} {path}", schema)
    return value


def lfs_pointer_error(path: Path) -> str | None:
    """What to do about a file that Git LFS has not downloaded; None of any other file."""
    try:
        with path.open("rb") as file:
            is_pointer = file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return None
    if not is_pointer:
        return None
    return f"{path} is only a pointer of Git LFS: run `git lfs pull` in its repository"


def require_path(path: str | Path, what: str, override: str) -> Path:
    """The path, if it exists.

    Args:
        path: A local file or directory.
        what: What it should be, for the message.
        override: What to set on the command line, for the message.

    Raises:
        UserError: It does not exist.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{what} not found: {path} (set {override})")
    return path
