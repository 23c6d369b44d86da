"""Small raw data sets with annotations, in the layout of each source."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from delvm.tasks import derived
from experiments.sources.layouts import write_frames
from experiments.sources.raw import SCENES, save, scene
from experiments.sources.spheres import random_scene


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


RAW: dict[str, Callable[[Path], None]] = {
    "annotated": annotated,
    "frames": frames,
    "clips": clips,
}
