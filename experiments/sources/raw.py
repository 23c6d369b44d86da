"""Small raw data sets of photographs that ship inside packages, in the layout of each source."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from skimage.segmentation import felzenszwalb

from delvm.data.resizing import resize_center_crop
from delvm.data.sources.shapes import people, photographs
from delvm.data.types import ImageArray
from delvm.tasks import pose, restoration
from experiments.sources.layouts import (
    jpeg,
    write_coco,
    write_frames,
    write_sa1b,
    write_tar,
    write_video,
)

SCENES = ("coffee", "chelsea", "china", "rocket", "flower", "astronaut")
SIDE = 256
# Keypoints of that photograph, annotated by eye; of the left arm only the shoulder is visible.
ASTRONAUT = {
    "nose": (226, 122), "right_eye": (201, 101), "left_eye": (248, 103),
    "right_ear": (177, 115), "left_ear": (276, 118),
    "right_shoulder": (95, 262), "left_shoulder": (318, 268),
    "right_elbow": (52, 420), "right_wrist": (152, 498),
}  # fmt: skip


def scene(name: str, side: int = SIDE) -> ImageArray:
    """The center of a photograph, (side, side, 3) uint8."""
    return np.asarray(resize_center_crop(photographs.load_photo(name), side))


def save(path: Path, image: ImageArray) -> None:
    """Write an image in the format of its suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def gopro(root: Path) -> None:
    """{train,test}/SCENE/{blur,sharp}/*.png."""
    for number, name in enumerate(SCENES[:4]):
        folder = root / "train" / f"GOPR{number:04d}_11_00"
        save(folder / "sharp" / "000001.png", scene(name))
        blur = restoration.motion_blur(scene(name), np.random.default_rng(number))
        save(folder / "blur" / "000001.png", blur)


def rain13k(root: Path) -> None:
    """train/Rain13K/{input,target}/*."""
    for number, name in enumerate(SCENES[:4]):
        folder = root / "train" / "Rain13K"
        save(folder / "target" / f"{number}.jpg", scene(name))
        rain = restoration.add_rain(scene(name), np.random.default_rng(number))
        save(folder / "input" / f"{number}.jpg", rain)


def paired(root: Path) -> None:
    """{input,target}/* of a user's own task: dark images and their bright originals."""
    for name in SCENES[:4]:
        save(root / "target" / f"{name}.png", scene(name))
        save(root / "input" / f"{name}.png", scene(name) // 4)


def image_folder(root: Path) -> None:
    """Any directory of images."""
    for name in SCENES:
        save(root / "any" / f"{name}.png", np.asarray(photographs.load_photo(name)))


def classes(root: Path) -> None:
    """CLASS/*: each photograph is a class, and its images are crops."""
    for name in SCENES[:2]:
        photo = photographs.load_photo(name)
        for number in range(4):
            side, left = min(photo.size) * 2 // 3, number * 30
            crop = photo.crop((left, 0, left + side, side))
            save(root / name / f"{number}.png", np.asarray(crop))


def laion(root: Path) -> None:
    """NNNNN.tar with KEY.jpg, KEY.json and KEY.txt."""
    files: dict[str, bytes] = {}
    for number, name in enumerate(SCENES):
        caption = f"a photograph of {name}"
        files[f"{number:09d}.jpg"] = jpeg(np.asarray(photographs.load_photo(name)))
        files[f"{number:09d}.json"] = json.dumps({"caption": caption}).encode()
        files[f"{number:09d}.txt"] = caption.encode()
    write_tar(root / "00000.tar", files)


def sa1b(root: Path) -> None:
    """sa_000000.tar: a photograph at the size of SA-1B, with its segments as masks."""
    photo = photographs.load_photo("china")
    small = photo.resize((photo.width // 2, photo.height // 2))
    segments = felzenszwalb(np.asarray(small), scale=200, sigma=0.8, min_size=250)
    scale = 1500 / photo.height
    size = round(scale * photo.width), 1500
    labels = np.asarray(Image.fromarray(segments.astype(np.uint16)).resize(size, 0))
    masks = [labels == label for label in np.unique(labels)]
    write_sa1b(root / "sa_000000.tar", {"sa_1": (np.asarray(photo.resize(size)), masks)})


def coco(root: Path) -> None:
    """annotations/*.json and train2017/*.jpg: one person is real, the others rendered."""
    items = {f"{number:012d}.jpg": _two_people(number) for number in range(1, 4)}
    points = np.full((len(pose.KEYPOINTS), 2), np.nan)
    for name, position in ASTRONAUT.items():
        points[pose.KEYPOINTS.index(name)] = position
    items = {"000000000000.jpg": (scene("astronaut", 512), [points]), **items}
    write_coco(root, "train", items)


def _two_people(seed: int) -> tuple[ImageArray, list[pose.Points]]:
    """Two people in front of one background, and their keypoints in pixels."""
    rng = np.random.default_rng(seed)
    keypoints, halves, photos = [], [], photographs.packaged_pool("train")
    for left in (0.0, 0.5):
        points = people.random_keypoints(rng)
        low, high = np.nanmin(points, axis=0), np.nanmax(points, axis=0)
        scale = min(0.42 / (high - low)[0], 0.8 / (high - low)[1])
        points = (points - low) * scale + (left + 0.04, 0.1)
        # The same seed for both, and so the same background.
        halves.append(people.render(np.random.default_rng(seed), photos, 2 * SIDE, points))
        keypoints.append(points * 2 * SIDE)
    return np.concatenate((halves[0][:, :SIDE], halves[1][:, SIDE:]), axis=1), keypoints


def video(root: Path) -> None:
    """A video with a cut, and a directory of frames."""
    write_video(root / "moving.mp4", [*_moving("china", 26), *_moving("rocket", 26)])
    write_frames(root / "frames", _moving("coffee", 26))


def hdvila(root: Path) -> None:
    """video_clips/ID/ID.N.mp4."""
    for number, name in enumerate(("flower", "chelsea")):
        write_video(root / "video_clips" / "abc" / f"abc.{number}.mp4", _moving(name, 26))


def _moving(name: str, count: int) -> Iterator[ImageArray]:
    """Frames of a camera that pans over a photograph and zooms in."""
    photo = photographs.load_photo(name)
    for number in range(count):
        side = min(photo.size) * (0.9 - 0.012 * number)
        left, top = number * 5.0, number * 1.5
        box = (left, top, min(left + side, photo.width), min(top + side, photo.height))
        yield np.asarray(photo.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box))


RAW: dict[str, Callable[[Path], None]] = {
    "gopro": gopro,
    "rain13k": rain13k,
    "paired": paired,
    "images": image_folder,
    "classes": classes,
    "laion": laion,
    "sa1b": sa1b,
    "coco": coco,
    "video": video,
    "hdvila": hdvila,
}
