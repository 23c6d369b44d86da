"""What a task means: how its target is drawn, read back and scored."""

from delvm.errors import UserError, did_you_mean
from delvm.tasks import derived, pose, restoration, segmentation
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


__all__ = ["HELD_OUT", "NAMES", "TRAINED", "Task", "get"]
