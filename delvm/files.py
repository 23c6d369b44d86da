"""Files that are written whole or not at all, and read with one clear line on failure."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from delvm.errors import UserError
from delvm.places import Place, Remote, place


@contextmanager
def atomic_path(path: str | Place) -> Iterator[Path]:
    """A temporary name beside ``path`` to write a file to.

    On success it is renamed to ``path``; on any failure it is removed and what stood at
    ``path`` before is untouched. The suffix is kept, since writers choose a format by it. For a
    file of a store it is a temporary file of this machine, which is put there on success.
    """
    path = place(path)
    if isinstance(path, Remote):
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
def atomic_folder(path: str | Path) -> Iterator[Path]:
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


def remove_tree(path: Place) -> None:
    """Remove a folder and all below, if it is there."""
    if isinstance(path, Remote):
        path.remove_tree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def cache_folder() -> Path:
    """Where stays what can be made again: ``$DELVM_CACHE``, by default ``~/.cache/delvm``."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "delvm"
    return Path(os.environ.get("DELVM_CACHE") or default)


def local(path: Place) -> Path:
    """A file of this machine with what is at ``path``: itself, or a copy of what a store holds.

    Copies stay in `cache_folder`, each fetched once, and again when the store has another version;
    nothing removes them.

    Raises:
        FileNotFoundError: the store has no such file.
    """
    if isinstance(path, Path):
        return path
    digest = hashlib.sha256(f"{path.url} {path.version()}".encode()).hexdigest()
    copy = cache_folder() / digest[:2] / f"{digest[2:32]}-{path.name}"
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


def write_text(path: str | Place, text: str) -> None:
    """Write UTF-8 text whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Place, value: Any) -> None:
    """Write JSON, indented and with a final newline, whole or not at all."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: str | Place, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: the file.
        what: what the file should be, for the message ("tokenizer config").

    Raises:
        UserError: the file is missing, is not JSON, or is not an object.
    """
    try:
        value = json.loads(place(path).read_text(encoding="utf-8"))
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
