"""Images that are mirrored or turned: what an answer takes from the query is moved."""

import numpy as np

from delvm.tasks.base import ImageArray, Task


def mirror(image: ImageArray) -> ImageArray:
    """The image (H, W, 3) with left and right exchanged."""
    return np.ascontiguousarray(image[:, ::-1])


def quarter_turn(image: ImageArray) -> ImageArray:
    """The image (H, W, 3) turned by 90 degrees clockwise, (W, H, 3)."""
    return np.ascontiguousarray(np.rot90(image, -1))


# What a cut of the input shows is elsewhere in the target, so examples are never zoomed into.
MIRROR = Task(
    name="mirror",
    description="exchange left and right",
    max_degrees=0.0,  # a turned pair would be mirrored about another line
    allows_zoom=False,
)
ROTATE = Task(
    name="rotate",
    description="turn by 90 degrees clockwise",
    allows_hflip=False,  # a mirrored pair turns the other way
    allows_zoom=False,
)
