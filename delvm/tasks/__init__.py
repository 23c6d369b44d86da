"""What a task means: how its target is drawn, read back and scored."""

import re

from delvm.errors import UserError, did_you_mean
from delvm.tasks import derived, pose, restoration, segmentation
from delvm.tasks import multi_pose as poses
from delvm.tasks import sam_masks as masks
from delvm.tasks import unpaired as general
from delvm.tasks.base import Task

TRAINED = ("segmentation", "pose", "derain", "deblur")
HELD_OUT = ("colourisation", "inpainting", "edges")
NAMES = TRAINED + HELD_OUT

_TASKS = {
    task.name: task
    for task in (
        segmentation.TASK,
        pose.TASK,
        restoration.DERAIN,
        restoration.DEBLUR,
        derived.COLOURISATION,
        derived.INPAINTING,
        derived.EDGES,
        masks.TASK,
        poses.TASK,
        general.IMAGES,
        general.CATEGORIES,
        general.TUPLE,
        general.VIDEO,
    )
}


def get(name: str) -> Task:
    """The task of that name.

    Raises:
        UserError: there is none; the message names the nearest.
    """
    if name not in _TASKS:
        raise UserError(f"unknown task '{name}': {did_you_mean(name, NAMES)}")
    return _TASKS[name]


def of(name: str) -> Task:
    """The task of a folder of examples, which may be one of the user's own.

    A task that is not known is scored by psnr and ssim, and never mirrored: whether that would
    change what it means cannot be told.

    Raises:
        UserError: the name is no plain one, so that it could not be a folder's either.
    """
    if name in _TASKS:
        return _TASKS[name]
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise UserError(f"task '{name}' is no plain name: use small letters, digits and _")
    return Task(name=name, description=f"the user's own task {name}", flips=False)


__all__ = ["HELD_OUT", "NAMES", "TRAINED", "Task", "get", "of"]
