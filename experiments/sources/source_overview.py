"""Make docs/sources.png: what each source makes of a small raw data set in its true layout.

    python -m experiments.sources.source_overview

It runs `delvm prepare` as a user would, so it also shows that every source works.
"""

import itertools
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from delvm import cli
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid
from experiments.sources.raw import RAW

OVERVIEW = Path("docs/sources.png")
IMAGES_PER_ROW, CELL = 8, 96


class Row(NamedTuple):
    """A row of the overview.

    Attributes:
        source: as in conf/verbs/source.
        tasks: whose examples are shown, the same number of images of each.
        raw: key in `raw.RAW` of what is read; None for a source that generates its images.
        overrides: for the command line.
    """

    source: str
    tasks: tuple[str, ...]
    raw: str | None
    overrides: tuple[str, ...] = ()


COUNTS = "source.train={segmentation: 1, pose: 1, derain: 1, deblur: 1}"
CLIPS = ("source.clip_length=4", "source.stride=6")
TUPLES = ("source.tasks=[]", "source.annotations=[grayscale,edges]")
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
)


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
        images += itertools.islice(task_images, 2 if len(row.tasks) > 1 else IMAGES_PER_ROW)
    return images


def write_overview(path: Path, size: int = 256) -> None:
    """Write the grid of all rows, from images prepared with that side."""
    rows, titles = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number, row in enumerate(ROWS):
            rows.append(row_images(row, Path(scratch) / str(number), size))
            titles.append(f"{row.source}: {', '.join(row.tasks)}")
    grid = image_grid(rows, cell=CELL, row_titles=titles)
    with atomic_path(path) as tmp:
        # 256 colors halve the file, and are enough at this size.
        grid.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(tmp, optimize=True)


if __name__ == "__main__":
    try:
        write_overview(OVERVIEW)
    except UserError as error:
        sys.exit(str(error))
    print(f"image: {OVERVIEW}")
