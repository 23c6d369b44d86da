"""Small annotated data sets in their true layouts."""

import gzip
import json
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


def moving(count: int, height: int = 32, width: int = 48) -> list[np.ndarray]:
    """Frames (H, W, 3) uint8 of a bright square that jumps about on a smooth image."""
    frames = [smooth(width, height, seed=7).copy() for _ in range(count)]
    for number, frame in enumerate(frames):
        left = 11 * number % (width - 16)
        frame[8:24, left : left + 16] = (250, 60, 60)
    return frames


def depth_of(frame: np.ndarray) -> np.ndarray:
    """A depth map (H, W) uint16 whose near pixels are those of the square."""
    return np.where(square_of(frame), 1000, 4000).astype(np.uint16)


def labels_of(frame: np.ndarray) -> np.ndarray:
    """Labels (H, W) uint8 of the square (2) and of the rest (1)."""
    return np.where(square_of(frame), 2, 1).astype(np.uint8)


def square_of(frame: np.ndarray) -> np.ndarray:
    """Where the square of `moving` is (H, W)."""
    return np.abs(frame.astype(int) - (250, 60, 60)).max(axis=2) < 40


def write_frame_folder(
    folder: Path, frames: list[np.ndarray], name: str = "frame{:04d}.png"
) -> None:
    """Frames as numbered images."""
    for number, frame in enumerate(frames):
        save_array(folder / name.format(number), frame)


def write_annotated_clip(root: Path, video: str, count: int, *, by_video: bool = False) -> None:
    """A directory of frames with depth and labels: image/VIDEO or, by video, VIDEO/image."""
    frames = moving(count)
    for kind, made in {
        "image": frames,
        "depth": [depth_of(frame) for frame in frames],
        "seg": [labels_of(frame) for frame in frames],
    }.items():
        write_frame_folder(root / (f"{video}/{kind}" if by_video else f"{kind}/{video}"), made)


def write_sequence(folder: Path, count: int, height: int = 40, width: int = 24) -> None:
    """A sequence of CO3D v2, whose gray level is the number of the frame, with all its files.

    Frames are not numbered from 1, and masks are soft, as in the data set.
    """
    for number in range(count):
        name = f"frame{3 * number + 7:06d}"
        frame = np.full((height, width, 3), 4 * number + 1, np.uint8)
        (folder / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(frame).save(folder / "images" / f"{name}.jpg", quality=95)
        left = number % width
        mask = np.full((height, width), 3, np.uint8)
        mask[:, left : left + 4] = 250
        save_array(folder / "masks" / f"{name}.png", mask)
        valid = Image.fromarray(mask > 127)
        (folder / "depth_masks").mkdir(exist_ok=True)
        valid.save(folder / "depth_masks" / f"{name}.png")
        depth = np.where(mask > 127, 2.5 + 0.01 * number, 0).astype(np.float16)
        save_array(folder / "depths" / f"{name}.jpg.geometric.png", depth.view(np.uint16))
    (folder / "pointcloud.ply").write_bytes(b"ply\n")


def write_co3d(root: Path, sequences: dict[str, int]) -> None:
    """Sequences ("apple/110_13051_23361" -> number of frames) of CO3D v2, with its annotations."""
    for name, count in sequences.items():
        write_sequence(root / name, count)
    for category in {name.split("/")[0] for name in sequences}:
        for kind in ("frame", "sequence"):
            path = root / category / f"{kind}_annotations.jgz"
            path.write_bytes(gzip.compress(b"[]"))


def write_set_list(root: Path, category: str, subset: str, train: list[str], test: list[str]):
    """CATEGORY/set_lists/set_lists_SUBSET.json."""
    lists = {
        split: [[name, 0, f"{category}/{name}/images/frame000001.jpg"] for name in names]
        for split, names in {"train": train, "val": train, "test": test}.items()
    }
    path = root / category / "set_lists" / f"set_lists_{subset}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(lists))
