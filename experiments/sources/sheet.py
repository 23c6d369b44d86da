"""Draw docs/sources.png: what each source makes of a small raw data set in its true layout.

    python -m experiments.sources.sheet

Runs `delvm prepare` as a user would, so it also shows that every source works.
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

SHEET = Path("docs/sources.png")
PICTURES, CELL = 8, 96


class Row(NamedTuple):
    """A row of the sheet.

    Attributes:
        source: as in conf/source.
        tasks: whose examples are shown, the same number of pictures of each.
        raw: what is read, of `raw.RAW`; None of a source that draws its pictures itself.
        words: for the command line.
    """

    source: str
    tasks: tuple[str, ...]
    raw: str | None
    words: tuple[str, ...] = ()


COUNTS = "source.train={segmentation: 1, pose: 1, derain: 1, deblur: 1}"
CLIPS = ("source.frames=4", "source.stride=6")
ROWS = (
    Row("shapes", ("segmentation", "pose", "derain", "deblur"), None, (COUNTS, "source.val=1")),
    Row("gopro", ("deblur",), "gopro"),
    Row("rain13k", ("derain",), "rain13k"),
    Row("paired", ("brighten",), "paired", ("source.task=brighten",)),
    Row("images", ("images",), "images"),
    Row("images", ("categories",), "classes", ("source.categories=true", "source.pictures=4")),
    Row("laion", ("images",), "laion"),
    Row("derived", ("colourisation", "inpainting", "edges"), "images"),
    Row("derived", ("tuple",), "images", ("source.tasks=[]", "source.tuples=[grey,edges]")),
    Row("sa1b", ("masks",), "sa1b"),
    Row("coco_pose", ("pose",), "coco"),
    Row("coco_pose", ("poses",), "coco", ("source.whole=true",)),
    Row("video", ("video",), "video", CLIPS),
    Row("hdvila", ("video",), "hdvila", CLIPS),
)


def pictures(row: Row, folder: Path, size: int) -> list[Image.Image]:
    """Write a row's raw data set, prepare it, and take the first pictures of each task.

    Raises:
        UserError: `delvm prepare` failed.
    """
    words = [f"source={row.source}", f"source.size={size}", f"output_dir={folder / 'pairs'}"]
    if row.raw:
        RAW[row.raw](folder / "raw")
        words += [f"source.path={folder / 'raw'}", "source.val=0", "source.test=0"]
    words += ["splits=[train]", *row.words]
    if cli.main(["prepare", *words]):
        raise UserError(f"delvm prepare {' '.join(words)} failed")
    shown: list[Image.Image] = []
    for task in row.tasks:
        examples = read_examples(folder / "pairs", "train", task)
        found = (Image.fromarray(each) for example in examples for each in example.images)
        shown += itertools.islice(found, 2 if len(row.tasks) > 1 else PICTURES)
    return shown


def draw(path: Path, size: int = 256) -> None:
    """Write the sheet of all rows, pictures prepared with that side."""
    rows, titles = [], []
    with tempfile.TemporaryDirectory() as scratch:
        for number, row in enumerate(ROWS):
            rows.append(pictures(row, Path(scratch) / str(number), size))
            titles.append(f"{row.source}: {', '.join(row.tasks)}")
    sheet = image_grid(rows, cell=CELL, row_titles=titles)
    with atomic_path(path) as part:
        # 256 colours halve the file, and are enough at this size.
        sheet.quantize(256, kmeans=2, dither=Image.Dither.NONE).save(part, optimize=True)


if __name__ == "__main__":
    try:
        draw(SHEET)
    except UserError as error:
        sys.exit(str(error))
    print(f"picture: {SHEET}")
