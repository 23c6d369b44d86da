"""Tasks without a target of their own: whatever pictures stand beside each other."""

from delvm.tasks.base import Task

IMAGES = Task(name="images", description="single pictures")
# A class may be one of the left and the right hand, or of letters.
CATEGORIES = Task(name="categories", description="pictures of one class", flips=False)
TUPLE = Task(name="tuple", description="a picture and all its annotations")
# Which way things move, and whatever is written in a frame, means something.
VIDEO = Task(name="video", description="frames of a clip in order", flips=False)
