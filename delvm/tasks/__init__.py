"""What a task means: how its target is rendered, parsed and scored."""

import re

from delvm import legacy
from delvm.errors import UserError, did_you_mean
from delvm.tasks import (
    degradations,
    depth,
    derived,
    foreground,
    geometric,
    multi_pose,
    normals,
    pose,
    reasoning,
    restoration,
    sam_masks,
    segmentation,
    unpaired,
)
from delvm.tasks.base import SMALL_ROTATION, Task

# Of the procedural corpus; the evaluation of students defaults to these.
TRAINED = ("segmentation", "pose", "derain", "deblur")
HELD_OUT = ("colorization", "inpainting", "edges")
NAMES = TRAINED + HELD_OUT

_NAME = r"[a-z][a-z0-9_]*"
_TASKS = {
    task.name: task
    for task in (
        segmentation.TASK,
        pose.TASK,
        restoration.DERAIN,
        restoration.DEBLUR,
        derived.COLORIZATION,
        derived.INPAINTING,
        derived.EDGES,
        degradations.DENOISE,
        degradations.SUPER_RESOLUTION,
        degradations.LOW_LIGHT,
        geometric.MIRROR,
        geometric.ROTATE,
        sam_masks.TASK,
        foreground.FOREGROUND,
        *foreground.FOLDS,
        depth.TASK,
        normals.TASK,
        *reasoning.TASKS.values(),
        multi_pose.TASK,
        unpaired.IMAGES,
        unpaired.CATEGORIES,
        unpaired.TUPLE,
        unpaired.ANNOTATED,
        unpaired.VIDEO,
        unpaired.VIDEO_SEPARATE,
        unpaired.VIDEO_INTERLEAVED,
        unpaired.OBJECT_VIEWS,
        unpaired.OBJECT_VIEWS_SEPARATE,
        unpaired.OBJECT_VIEWS_INTERLEAVED,
    )
}


def register(task: Task) -> Task:
    """Add a task with metrics of its own, so that `get` finds it.

    Call it where the module of a source is imported; to repeat it does no harm.

    Raises:
        UserError: another task has that name, or the name has other characters than a-z, 0-9, _.
    """
    _check_name(task.name)
    if _TASKS.setdefault(task.name, task) != task:
        raise UserError(f"task '{task.name}' exists already: register it under another name")
    return task


def get(name: str) -> Task:
    """The task of that name, or of that former name.

    Raises:
        UserError: the task is unknown; the message gives the closest name.
    """
    name = legacy.TASKS.get(name, name)
    if name not in _TASKS:
        raise UserError(f"unknown task '{name}': {did_you_mean(name, NAMES)}")
    return _TASKS[name]


def all_names() -> tuple[str, ...]:
    """Every registered task."""
    return tuple(_TASKS)


def get_or_default(name: str) -> Task:
    """The task of that name; an unknown one is scored by psnr and ssim, and never flipped
    or turned far.

    Nothing is known about an unknown task, and a flip may change what it means.

    Raises:
        UserError: the name has other characters than a-z, 0-9 and _.
    """
    if legacy.TASKS.get(name, name) in _TASKS:
        return get(name)
    _check_name(name)
    return Task(
        name=name,
        description=f"the unregistered task {name}",
        allows_hflip=False,
        max_degrees=SMALL_ROTATION,
    )


def _check_name(name: str) -> None:
    """Refuse names that could not be a directory's everywhere.

    Raises:
        UserError: the name has other characters.
    """
    if not re.fullmatch(_NAME, name):
        raise UserError(f"invalid task name {name!r}: use lower-case letters, digits and _")


__all__ = [
    "HELD_OUT", "NAMES", "TRAINED", "Task", "all_names", "get", "get_or_default", "register",
]  # fmt: skip
