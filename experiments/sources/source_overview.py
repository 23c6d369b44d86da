"""Make docs/sources.png and docs/visual_sentences.png: examples of each source.

    python -m experiments.sources.source_overview

The first shows what each source makes of a small raw data set in its true layout, the second every
kind of example that has more than two images. It runs `delvm prepare` as a user would, so it also
shows that every source works.
"""

import itertools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from delvm import cli
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid
from experiments.sources import raw, raw_annotated

RAW = raw.RAW | raw_annotated.RAW
IMAGES_PER_ROW, CELL = 8, 96


class Row(NamedTuple):
    """A row of the overview.

    Attributes:
        source: as in conf/verbs/source.
        tasks: whose examples are shown, the same number of images of each.
        raw: key in `RAW` of what is read; None for a source that generates its images.
        overrides: for the command line.
        note: what is special about it, for the title.
        num_images: images that are shown.
    """

    source: str
    tasks: tuple[str, ...]
    raw: str | None
    overrides: tuple[str, ...] = ()
    note: str = ""
    num_images: int = IMAGES_PER_ROW

    @property
    def title(self) -> str:
        """To the left of its images."""
        return f"{self.source}: {self.note or ', '.join(self.tasks)}"


COUNTS = "source.train={segmentation: 1, pose: 1, derain: 1, deblur: 1}"
CLIPS = ("source.clip_length=4", "source.stride=6")
TUPLES = ("source.tasks=[]", "source.annotations=[grayscale,edges]")
MASKS = ("source.num_views=4", "source.annotations=[masks]")
DEPTHS = ("source.num_views=4", "source.annotations=[depths]")
SHUFFLED = ("source.order=shuffled",)
FEW = ("source.num_train=4", "source.num_val=1", "source.num_test=1")
REASONING = tuple(f"reasoning_{change}" for change in ("color", "shape", "size", "color_shape"))
ROWS = (
    Row("shapes", ("segmentation", "pose", "derain", "deblur"), None, (COUNTS, "source.num_val=1")),
    Row("gopro", ("deblur",), "gopro"),
    Row("rain13k", ("derain",), "rain13k"),
    Row("paired", ("brighten",), "paired", ("source.task=brighten",)),
    Row("images", ("images",), "images"),
    Row("images", ("categories",), "classes", ("source.categories=true", "source.group_size=4")),
    Row("laion", ("images",), "laion"),
    Row("derived", ("colorization", "inpainting", "edges"), "images"),
    Row("derived", ("tuple",), "images", TUPLES),
    Row("sa1b", ("masks",), "sa1b"),
    Row("coco_pose", ("pose",), "coco"),
    Row("coco_pose", ("poses",), "coco", ("source.whole_image=true",)),
    Row("video", ("video",), "video", CLIPS),
    Row("hdvila", ("video",), "hdvila", CLIPS),
    Row("pascal5i", ("foreground_fold0",), "voc", ("source.folds=[0]",)),
    Row("nyu_depth", ("depth",), "nyu"),
    Row("stereo", ("depth",), None, FEW),
    Row("reasoning", REASONING, None, FEW, "color, shape, size, both"),
)
CATEGORIES = ("source.categories=true", "source.group_size=4")
STRIDES = ("source.clip_length=4", "source.strides=[8,2]")
SENTENCE_ROWS = (
    Row("images", ("categories",), "classes", CATEGORIES, "categories"),
    Row("video", ("video",), "frames", STRIDES, "clips of strides 8 and 2"),
    Row("derived", ("tuple",), "images", TUPLES, "tuple", num_images=9),
    Row("annotated", ("annotated",), "annotated", note="fixed order", num_images=10),
    Row("annotated", ("annotated",), "annotated", SHUFFLED, "shuffled", num_images=10),
    Row("annotated_video", ("video_separate",), "clips", (), "separate"),
    Row("annotated_video", ("video_interleaved",), "clips", (), "interleaved"),
    Row("co3d", ("object_views",), "co3d", (), "views of an object"),
    Row("co3d", ("object_views_interleaved",), "co3d", MASKS, "with masks, interleaved"),
    Row("co3d", ("object_views_separate",), "co3d", DEPTHS, "with depth, separate"),
)
OVERVIEWS = {Path("docs/sources.png"): ROWS, Path("docs/visual_sentences.png"): SENTENCE_ROWS}


def row_images(row: Row, folder: Path, size: int) -> list[Image.Image]:
    """Write a row's raw data set, prepare it, and return the first images of each task.

    Raises:
        UserError: `delvm prepare` failed.
    """
    words = [f"source={row.source}", f"source.size={size}", f"output_dir={folder / 'images'}"]
    if row.raw:
        RAW[row.raw](folder / "raw")
        words += [f"source.path={folder / 'raw'}"]
        words += ["source.val_fraction=0", "source.test_fraction=0"]
    words += ["splits=[train]", *row.overrides]
    if cli.main(["prepare", *words]):
        raise UserError(f"delvm prepare {' '.join(words)} failed")
    images: list[Image.Image] = []
    for task in row.tasks:
        examples = read_examples(folder / "images", "train", task)
        task_images = (Image.fromarray(each) for example in examples for each in example.images)
        images += itertools.islice(task_images, 2 if len(row.tasks) > 1 else row.num_images)
    return images


def write_overview(path: Path, rows: Sequence[Row], size: int = 256) -> None:
    """Write the grid of some rows, from images prepared with that side."""
    images = []
    with tempfile.TemporaryDirectory() as scratch:
        for number, row in enumerate(rows):
            images.append(row_images(row, Path(scratch) / str(number), size))
    grid = image_grid(images, cell=CELL, row_titles=[row.title for row in rows])
    # 256 colors halve the file, and are enough at this size.
    reduced = grid.quantize(256, kmeans=2, dither=Image.Dither.NONE)
    if rows is SENTENCE_ROWS:  # the shades of normals are smooth
        reduced = grid.quantize(palette=reduced, dither=Image.Dither.FLOYDSTEINBERG)
    with atomic_path(path) as tmp:
        reduced.save(tmp, optimize=True)


if __name__ == "__main__":
    for path, rows in OVERVIEWS.items():
        try:
            write_overview(path, rows)
        except UserError as error:
            sys.exit(str(error))
        print(f"image: {path}")
