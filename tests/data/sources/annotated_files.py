"""Small annotated data sets in their true layouts."""

from pathlib import Path

import numpy as np
from PIL import Image

from tests.data.sources.bad_files import save, smooth


def depth_map(height: int, width: int, near: float = 500, far: float = 8000) -> np.ndarray:
    """Depth (H, W) uint16 in millimeters that grows to the right, with an unknown corner."""
    depth = np.tile(np.linspace(near, far, width), (height, 1)).astype(np.uint16)
    depth[: height // 4, : width // 4] = 0
    return depth


def normal_map(height: int, width: int) -> np.ndarray:
    """Normals of a sphere (H, W, 3) uint8: x to the right in red, y upwards in green, z in blue."""
    y, x = np.mgrid[1 : -1 : height * 1j, -1 : 1 : width * 1j]
    normals = np.stack((x, y, np.ones_like(x)), axis=2)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    return np.round((normals + 1) * 127.5).astype(np.uint8)


def label_map(height: int, width: int) -> np.ndarray:
    """Ids (H, W) uint8 of four classes in stripes."""
    return np.tile((np.arange(width) * 4 // width).astype(np.uint8) * 40, (height, 1))


def save_array(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def write_annotated(root: Path, count: int = 6, width: int = 24, height: int = 24) -> None:
    """image/*.jpg with depth, edge, normal and segmentation/*.png."""
    for number in range(count):
        name = f"scene/{number:03d}.png"
        save(root / "image" / f"scene/{number:03d}.jpg", smooth(width, height, seed=number))
        save_array(root / "depth" / name, depth_map(height, width))
        save_array(root / "edge" / name, smooth(width, height, seed=100 + number)[:, :, 0])
        save_array(root / "normal" / name, normal_map(height, width))
        save_array(root / "segmentation" / name, label_map(height, width))
