"""Small raw data sets with annotations, in the layout of each source."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from delvm.tasks import derived, foreground
from experiments.sources.layouts import write_frames
from experiments.sources.raw import SCENES, save, scene
from experiments.sources.spheres import random_scene, turned_object


def to_millimeters(depth: np.ndarray) -> np.ndarray:
    """Depth in meters as a data set stores it, in 16 bits."""
    return np.round(1000 * depth).astype(np.uint16)


def save_gray(path: Path, values: np.ndarray) -> None:
    """Write (H, W) in 8 or 16 bits as a PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def annotated(root: Path) -> None:
    """{image,depth,edge,normal,segmentation}/*, with equal file names."""
    for number, name in enumerate(SCENES[:4]):
        made = random_scene(number, scene(name))
        save(root / "image" / f"{number}.jpg", made.image)
        save_gray(root / "depth" / f"{number}.png", to_millimeters(made.depth))
        save(root / "edge" / f"{number}.png", derived.edge_map(made.image))
        save(root / "normal" / f"{number}.png", made.normals)
        save_gray(root / "segmentation" / f"{number}.png", made.ids)


def frames(root: Path) -> None:
    """A directory of frames of spheres that move."""
    steps = np.linspace(0, 1, 26)
    write_frames(root / "spheres", (random_scene(1, scene("flower"), step).image for step in steps))


def clips(root: Path) -> None:
    """{image,segmentation}/NAME: a directory of frames and one of labels."""
    for number in range(26):
        made = random_scene(1, scene("flower"), number / 25)
        save(root / "image" / "spheres" / f"{number}.jpg", made.image)
        save_gray(root / "segmentation" / "spheres" / f"{number}.png", made.ids)


def co3d(root: Path) -> None:
    """CATEGORY/SEQUENCE/{images,masks,depths}/*, as in version 2, of an object that turns."""
    background = scene("china") // 3 + 100
    for number in range(40):
        made = turned_object(0, background, 2 * np.pi * number / 40)
        sequence, name = root / "toy" / "110_13051_23361", f"frame{number + 1:06d}"
        save(sequence / "images" / f"{name}.jpg", made.image)
        mask = np.where(made.ids > 0, 255, 0).astype(np.uint8)
        save_gray(sequence / "masks" / f"{name}.png", mask)
        depth = np.where(made.ids > 0, made.depth, 0).astype(np.float16)
        save_gray(sequence / "depths" / f"{name}.jpg.geometric.png", depth.view(np.uint16))


def nyu(root: Path) -> None:
    """official_splits/{train,test}/SCENE/{rgb,sync_depth}_N.*, as BTS has them."""
    for number, name in enumerate(SCENES[:4]):
        made = random_scene(number, scene(name))
        for split in ("train", "test"):
            folder = root / "official_splits" / split / f"room_{number:04d}"
            save(folder / f"rgb_{number:05d}.jpg", made.image)
            save_gray(folder / f"sync_depth_{number:05d}.png", to_millimeters(2 + made.depth))


def voc(root: Path) -> None:
    """JPEGImages, SegmentationClass and ImageSets/Segmentation of Pascal VOC: spheres as sheep."""
    names = []
    for number, name in enumerate(SCENES[:4]):
        made = random_scene(number, scene(name))
        names.append(f"2007_{number:06d}")
        save(root / "JPEGImages" / f"{names[-1]}.jpg", made.image)
        sheep = foreground.CLASSES.index("sheep") + 1
        ids = np.where(made.ids > 0, sheep, 0).astype(np.uint8)
        save_gray(root / "SegmentationClass" / f"{names[-1]}.png", ids)
    for split in ("train", "val"):
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{each}\n" for each in names))


RAW: dict[str, Callable[[Path], None]] = {
    "annotated": annotated,
    "frames": frames,
    "clips": clips,
    "co3d": co3d,
    "nyu": nyu,
    "voc": voc,
}
