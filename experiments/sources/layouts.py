"""Write small data sets in the true layouts of SA-1B, COCO keypoints and videos.

For the tests of their readers, and for the sheet of all sources.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from pycocotools import mask as coco

from delvm.tasks.pose import KEYPOINTS

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip


def jpeg(picture: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as a JPEG of high quality."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def write_tar(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a tar of files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


# ------------------------------------------------------------ SA-1B


def rle(mask: np.ndarray) -> dict[str, Any]:
    """A mask (H, W) bool as the compressed run lengths of COCO, for JSON."""
    made = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": made["counts"].decode("ascii")}


def sa1b_json(name: str, masks: Iterable[np.ndarray]) -> dict[str, Any]:
    """What stands beside a picture of SA-1B.

    Args:
        name: Of the picture, without the suffix.
        masks: (H, W) bool each.
    """
    annotations = []
    for number, mask in enumerate(masks):
        segmentation = rle(mask)
        box = coco.toBbox(segmentation).tolist()
        annotation = {
            "id": number,
            "segmentation": segmentation,
            "bbox": box,
            "area": int(mask.sum()),
            "predicted_iou": 0.95,
            "stability_score": 0.97,
            "crop_box": [0.0, 0.0, float(mask.shape[1]), float(mask.shape[0])],
            "point_coords": [[box[0] + box[2] / 2, box[1] + box[3] / 2]],
        }
        annotations.append(annotation)
    height, width = mask.shape
    image = {"image_id": 1, "width": width, "height": height, "file_name": f"{name}.jpg"}
    return {"image": image, "annotations": annotations}


def write_sa1b(path: Path, items: Mapping[str, tuple[np.ndarray, Sequence[np.ndarray]]]) -> None:
    """Write a tar of SA-1B.

    Args:
        path: Such as sa_000000.tar.
        items: Name, such as sa_1 -> picture (H, W, 3) uint8 and its masks (H, W) bool.
    """
    files: dict[str, bytes] = {}
    for name, (picture, masks) in items.items():
        files[f"./{name}.jpg"] = jpeg(picture)
        files[f"./{name}.json"] = json.dumps(sa1b_json(name, masks)).encode()
    write_tar(path, files)


# ------------------------------------------------------------ COCO


def coco_person(points: np.ndarray, number: int, image: int) -> dict[str, Any]:
    """A person's annotation.

    Args:
        points: (18, 2) in pixels, in the order of `pose.KEYPOINTS`, NaN where unseen; the neck,
            which COCO does not know, is left out.
        number, image: Ids of the annotation and of the picture.
    """
    values: list[float] = []
    for name in COCO_KEYPOINTS:
        x, y = points[KEYPOINTS.index(name)]
        values += [0, 0, 0] if np.isnan(x) else [int(x), int(y), 2]
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    room = 0.1 * (high - low).max()  # a body reaches beyond its joints
    low, high = low - room, high + room
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "iscrowd": 0,
        "num_keypoints": sum(value == 2 for value in values[2::3]),
        "keypoints": values,
        "bbox": [*map(float, low), *map(float, high - low)],
        "area": float(np.prod(high - low)),
    }


def write_coco(
    root: Path, split: str, items: Mapping[str, tuple[np.ndarray, Sequence[np.ndarray]]]
) -> dict[str, Any]:
    """Write the pictures of one split and its annotations.

    Args:
        root: Of the data set.
        split: "train" or "val".
        items: File name -> picture (H, W, 3) uint8 and its people, (18, 2) in pixels each.

    Returns:
        What was written as JSON.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, (picture, people)) in enumerate(items.items(), 1):
        path = root / f"{split}2017" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(picture))
        height, width = picture.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for points in people:
            annotations.append(coco_person(points, len(annotations) + 1, number))
    held = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO_KEYPOINTS)}],
    }
    write_annotations(root, split, held)
    return held


def write_annotations(root: Path, split: str, held: Any) -> None:
    """Write person_keypoints_SPLIT2017.json."""
    path = root / "annotations" / f"person_keypoints_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(held))


# ------------------------------------------------------------ videos


def write_video(path: Path, frames: Iterable[np.ndarray], turned: float = 0) -> None:
    """Write frames (H, W, 3) uint8, of even sides, as a video with H.264.

    Args:
        path: Of an .mp4, or of another container that has H.264.
        frames: At least one.
        turned: Degrees to be turned counterclockwise when shown, as telephones write it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=10, options={"crf": "12"})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                if turned:
                    stream.set_display_rotation(turned)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        assert stream is not None
        container.mux(stream.encode())


def write_frames(folder: Path, frames: Iterable[np.ndarray]) -> None:
    """Write frames (H, W, 3) uint8 as pictures, numbered without leading zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
