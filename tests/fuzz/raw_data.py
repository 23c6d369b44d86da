"""Raw data sets of one or two items, in the layout of each source."""

from pathlib import Path

import numpy as np
from PIL import Image

from delvm.storage import write_json
from experiments.sources import layouts, raw


def small_sa1b(root: Path) -> None:
    pixels = raw.scene("coffee", 32)
    mask = np.zeros((32, 32), bool)
    mask[4:20, 8:28] = True
    layouts.write_sa1b(root / "sa_000000.tar", {"sa_1": (pixels, [mask, ~mask])})


def small_coco(root: Path) -> None:
    points = np.full((18, 2), np.nan)
    points[:6] = np.linspace(4, 28, 12).reshape(6, 2)
    layouts.write_coco(root, "train", {"1.jpg": (raw.scene("coffee", 32), [points])})


def small_laion(root: Path) -> None:
    files = {"0.jpg": layouts.jpeg(raw.scene("coffee", 32)), "0.txt": b"a"}
    layouts.write_tar(root / "00000.tar", files)


def small_video(root: Path) -> None:
    layouts.write_video(root / "a.mp4", [raw.scene("coffee", 32)] * 6)


def small_annotated(root: Path) -> None:
    for folder in ("image", "depth", "segmentation"):
        (root / folder).mkdir(parents=True)
    Image.fromarray(raw.scene("coffee", 32)).save(root / "image" / "a.png")
    depth = np.linspace(500, 8000, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(depth).save(root / "depth" / "a.png")
    Image.fromarray((depth // 2000).astype(np.uint8)).save(root / "segmentation" / "a.png")


def small_co3d(root: Path) -> None:
    for sequence in ("1_2_3", "4_5_6"):
        folder = root / "apple" / sequence / "images"
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"frame{number:06d}.jpg").write_bytes(layouts.jpeg(raw.scene("coffee", 32)))
    lists = {"train": [], "val": [], "test": [["1_2_3", 0, "apple/1_2_3/images/frame000000.jpg"]]}
    write_json(root / "apple" / "set_lists" / "set_lists_fewview_dev.json", lists)


def small_lmdb(root: Path) -> None:
    import lmdb

    folder = root / "train" / "Rain13K"
    folder.mkdir(parents=True)
    for side in ("input", "target"):
        store = folder / f"{side}.lmdb"
        with lmdb.open(str(store), map_size=2**20) as env, env.begin(write=True) as transaction:
            transaction.put(b"0", layouts.jpeg(raw.scene("coffee", 32)))
        (store / "meta_info.txt").write_text("0.png (32,32,3) 1\n")
