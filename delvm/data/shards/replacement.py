"""How directories of shards are replaced: built next to the old ones, then renamed.

    ROOT/SPLIT/TASK/                   a finished directory, or the first one being built
    ROOT/SPLIT/.TASK.new/              its replacement, until everything of a job is complete
    ROOT/.codebook.new.safetensors     the codebook of replacements (token roots)
    ROOT/.replace.json                 what is being put in place, {"directories": [SPLIT/TASK]}

A job killed while it builds leaves the old directories, and continues in the new ones. From the
moment that .replace.json is there, the new ones count: whoever reads the root next finishes.
"""

import fcntl
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from delvm import legacy
from delvm.directories import recover_dir, replace_dir
from delvm.errors import UserError
from delvm.storage import (
    RemotePath,
    StoragePath,
    as_path,
    read_json,
    remove_tree,
    write_json,
)

MANIFEST, INCOMPLETE = "manifest.json", "unfinished.json"
CODEBOOK, NEW_CODEBOOK = "codebook.safetensors", ".codebook.new.safetensors"
_JOURNAL = ".replace.json"
# Besides shards: what `delvm.data.prepare.chunks` and `delvm.data.shards.writer` write.
_WRITTEN = {MANIFEST, INCOMPLETE, "rejects.jsonl", "chunks", *legacy.CHUNK_DIRS}


def replacement_dir(folder: StoragePath) -> Path | None:
    """Where the replacement of a directory is built.

    None in an object store, which cannot rename directories: there the old shards are removed
    first, and a killed job has to be run again to make the directory complete.
    """
    if isinstance(folder, RemotePath):
        return None
    return folder.with_name(f".{folder.name}.new")


def build_dir(folder: StoragePath) -> StoragePath:
    """Where the shards of a directory are written: in its replacement, if one is being built."""
    new = replacement_dir(folder)
    return new if new is not None and (new / INCOMPLETE).exists() else folder


def discard_replacement(folder: StoragePath) -> None:
    """Remove the replacement that a killed job has begun."""
    new = replacement_dir(folder)
    if new is not None and new.exists():
        # First the file that declares it one, so that half of it is never continued.
        (new / INCOMPLETE).unlink(missing_ok=True)
        remove_tree(new)


def put_in_place(root: StoragePath, names: Iterable[tuple[str, str]]) -> None:
    """Put complete replacements in place, all or none of them, and the new codebook with them.

    Args:
        root: Root of the shards.
        names: (split, task) of each directory; those without a replacement are left alone.
    """
    folders = [as_path(root) / split / task for split, task in names]
    replaced = [folder for folder in folders if build_dir(folder) != folder]
    complete = all((build_dir(folder) / MANIFEST).exists() for folder in replaced)
    if replaced and complete:
        listed = [f"{folder.parent.name}/{folder.name}" for folder in map(_local, replaced)]
        write_json(as_path(root) / _JOURNAL, {"directories": listed})
    finish_replacing(root)
    sweep(as_path(root))


def sweep(folder: StoragePath) -> None:
    """Remove the temporary files that killed processes have left in a directory."""
    for file in folder.glob(".*.part*"):
        file.unlink(missing_ok=True)


def finish_replacing(root: StoragePath) -> None:
    """Finish `put_in_place` of a process that was killed, if there was one.

    Raises:
        UserError: The directories cannot be renamed.
    """
    root = as_path(root)
    if isinstance(root, RemotePath):
        return
    journal = root / _JOURNAL
    try:
        with journal.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if journal.exists():  # else another process has finished it in the meantime
                _replace_all(root, read_json(journal, "list of replacements"))
                journal.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise UserError(
            f"{root} is being replaced by an earlier job, which cannot be finished: "
            f"{error.strerror}"
        ) from None


def _replace_all(root: Path, journal: dict[str, object]) -> None:
    names = journal.get("directories")
    for name in names if isinstance(names, list) else ():
        if not re.fullmatch(r"\w+/\w[\w-]*", str(name)):  # nothing outside of the root
            raise UserError(f"{root / _JOURNAL} names {name!r}, which is not SPLIT/TASK")
        folder = root / str(name)
        new = _local(replacement_dir(folder))
        recover_dir(folder)
        if (new / INCOMPLETE).exists():
            _take_over_other_files(folder, new)
            replace_dir(new, folder)
        (folder / INCOMPLETE).unlink(missing_ok=True)
        discard_replacement(folder)
    if (root / NEW_CODEBOOK).exists():
        os.replace(root / NEW_CODEBOOK, root / CODEBOOK)


def _take_over_other_files(old: Path, new: Path) -> None:
    """Keep what somebody else has put into a directory of shards."""
    for path in old.iterdir() if old.is_dir() else ():
        is_ours = path.suffix == ".tar" or path.name in _WRITTEN or ".part" in path.suffixes
        if is_ours:
            continue
        if path.is_dir() and not path.is_symlink():  # again, where a job was killed in between
            shutil.copytree(path, new / path.name, symlinks=True, dirs_exist_ok=True)
        elif not (new / path.name).is_symlink():
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def _local(path: StoragePath | None) -> Path:
    assert isinstance(path, Path)
    return path
