"""Write small data sets in the true layouts of SA-1B, COCO keypoints and videos.

For the tests of their readers, and for the overview of all sources.
"""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco

from delvm.data.types import ImageArray
from delvm.tasks.pose import KEYPOINTS, Points

Mask: TypeAlias = npt.NDArray[np.bool_]  # (H, W)

COCO_KEYPOINTS = (
    "nose", "left_eye", "right_eye", "left_ear", "right_ear",
    "left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist",
    "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
)  # fmt: skip


def jpeg(image: ImageArray) -> bytes:
    """An image (H, W, 3) uint8 as a JPEG of high quality."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=95)
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


def rle(mask: Mask) -> dict[str, Any]:
    """A mask (H, W) bool as the compressed run lengths of COCO, for JSON."""
    made = coco.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": made["counts"].decode("ascii")}


def sa1b_json(name: str, masks: Iterable[Mask]) -> dict[str, Any]:
    """The annotations of an image of SA-1B.

    Args:
        name: Of the image, without the suffix.
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


def write_sa1b(path: Path, items: Mapping[str, tuple[ImageArray, Sequence[Mask]]]) -> None:
    """Write a tar of SA-1B.

    Args:
        path: Such as sa_000000.tar.
        items: Name, such as sa_1 -> image (H, W, 3) uint8 and its masks (H, W) bool.
    """
    files: dict[str, bytes] = {}
    for name, (image, masks) in items.items():
        files[f"./{name}.jpg"] = jpeg(image)
        files[f"./{name}.json"] = json.dumps(sa1b_json(name, masks)).encode()
    write_tar(path, files)


# ------------------------------------------------------------ COCO


def coco_person(points: Points, number: int, image: int) -> dict[str, Any]:
    """A person's annotation.

    Args:
        points: (18, 2) in pixels, in the order of `pose.KEYPOINTS`, NaN where not
            visible; the neck, which COCO does not annotate, is left out.
        number, image: Ids of the annotation and of the image.
    """
    values: list[float] = []
    for name in COCO_KEYPOINTS:
        x, y = points[KEYPOINTS.index(name)]
        values += [0, 0, 0] if np.isnan(x) else [int(x), int(y), 2]
    low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
    margin = 0.1 * (high - low).max()  # a body extends beyond its joints
    low, high = low - margin, high + margin
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
    root: Path, split: str, items: Mapping[str, tuple[ImageArray, Sequence[Points]]]
) -> dict[str, Any]:
    """Write the images of one split and its annotations.

    Args:
        root: Of the data set.
        split: "train" or "val".
        items: File name -> image (H, W, 3) uint8 and its people, (18, 2) in pixels each.

    Returns:
        The content of the JSON.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, (image, people)) in enumerate(items.items(), 1):
        path = root / f"{split}2017" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(image))
        height, width = image.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for points in people:
            annotations.append(coco_person(points, len(annotations) + 1, number))
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "person", "keypoints": list(COCO_KEYPOINTS)}],
    }
    write_annotations(root, split, content)
    return content


def write_annotations(root: Path, split: str, content: Any) -> None:
    """Write person_keypoints_SPLIT2017.json."""
    path = root / "annotations" / f"person_keypoints_{split}2017.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


# ------------------------------------------------------------ videos


def write_video(
    path: Path,
    frames: Iterable[ImageArray],
    rotation: float = 0,
    *,
    mirror: bool = False,
    pixel_aspect: Fraction = Fraction(1),
) -> None:
    """Write frames (H, W, 3) uint8, of even sides, as a video with H.264.

    Args:
        path: Of an .mp4, or of another container that has H.264.
        frames: At least one.
        rotation: Degrees to rotate counterclockwise when shown, as phones write it.
        mirror: Whether to mirror it horizontally when shown, after the rotation.
        pixel_aspect: Width of a pixel by its height.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream("libx264", rate=10, options={"crf": "12"})
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.codec_context.sample_aspect_ratio = pixel_aspect
                if rotation or mirror:
                    stream.set_display_rotation(rotation, hflip=mirror)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        assert stream is not None
        container.mux(stream.encode())


def write_frames(folder: Path, frames: Iterable[ImageArray]) -> None:
    """Write frames (H, W, 3) uint8 as images, numbered without leading zeros."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"{number}.png")
