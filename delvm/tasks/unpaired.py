"""Tasks whose examples are not pairs of input and target.

Of these, sequences are evaluated by how well students continue them.
"""

from delvm.tasks.base import SMALL_ROTATION, Task

IMAGES = Task(name="images", description="single images")
# Classes may differ only in orientation, such as left and right hands, or letters.
CATEGORIES = Task(
    name="categories",
    description="images of one class",
    allows_hflip=False,
    max_degrees=SMALL_ROTATION,
)
TUPLE = Task(name="tuple", description="an image and all its annotations")
# The direction of motion, and text in a frame, have a meaning.
VIDEO = Task(
    name="video",
    description="frames of a clip in order",
    is_sequence=True,
    allows_hflip=False,
    max_degrees=SMALL_ROTATION,
)
# Where annotations are normals, mirroring or turning images would have to change their colors too.
ANNOTATED = Task(
    name="annotated",
    description="an image and all its annotations, any of which may be normals",
    allows_hflip=False,
    max_degrees=0.0,
)
VIDEO_SEPARATE = Task(
    name="video_separate",
    description="all frames of a clip, then all their annotations",
    allows_hflip=False,
    max_degrees=0.0,
)
VIDEO_INTERLEAVED = Task(
    name="video_interleaved",
    description="each frame of a clip, followed by its annotations",
    allows_hflip=False,
    max_degrees=0.0,
)
OBJECT_VIEWS = Task(
    name="object_views",
    description="views all around an object, in order",
    is_sequence=True,
    allows_hflip=False,  # it would go around the other way, and text would be mirrored
    max_degrees=SMALL_ROTATION,
)
OBJECT_VIEWS_SEPARATE = Task(
    name="object_views_separate",
    description="views all around an object, then all their annotations",
    allows_hflip=False,
    max_degrees=0.0,
)
OBJECT_VIEWS_INTERLEAVED = Task(
    name="object_views_interleaved",
    description="each view of an object, followed by its annotations",
    allows_hflip=False,
    max_degrees=0.0,
)
