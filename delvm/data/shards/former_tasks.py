"""Directories of shards that an earlier version wrote under the former name of a task."""

from pathlib import Path

from delvm import legacy
from delvm.data.shards.replacement import INCOMPLETE, MANIFEST
from delvm.errors import UserError
from delvm.storage import StoragePath, read_json, write_json


def rename_former_task(root: StoragePath, split: str, task: str) -> None:
    """Rename ROOT/SPLIT/FORMER to ROOT/SPLIT/TASK, so that work on it can be continued.

    Readers need no such renaming: `delvm.tasks.get` knows former names.

    Raises:
        UserError: the directory is in an object store, which has no renaming.
    """
    folder = root / split / task
    for name in (former for former, new in legacy.TASKS.items() if new == task):
        former = root / split / name
        if not former.is_dir() or folder.exists():
            continue
        if not isinstance(former, Path) or not isinstance(folder, Path):
            raise UserError(
                f"{former} is a former name of task '{task}': move it to {folder} and set its task "
                f"in {MANIFEST}, or set another output_dir"
            )
        for file in (former / MANIFEST, former / INCOMPLETE):
            if file.exists():
                write_json(file, read_json(file, "manifest") | {"task": task})
        former.rename(folder)
