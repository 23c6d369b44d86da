"""Bad input, and input that only looks bad: a function for each writes it to a path."""

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image

from experiments.sources.layouts import jpeg, sa1b_json

# The first bytes of the hidden file that a Mac puts next to each file of an archive.
APPLE_DOUBLE = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        "


def smooth(width: int = 32, height: int = 32, seed: int = 0) -> np.ndarray:
    """A image (H, W, 3) uint8 that JPEG keeps well."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def encoded(image: np.ndarray, suffix: str) -> bytes:
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix]
    Image.fromarray(image).save(buffer, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return buffer.getvalue()


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, path.suffix[1:]))


# ------------------------------------------------------------ bad


def truncated_jpeg(path: Path) -> None:
    data = encoded(smooth(64, 64), "jpg")
    path.write_bytes(data[: len(data) // 2])


def zero_bytes(path: Path) -> None:
    path.write_bytes(b"")


def html(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html><body>404 not found</body></html>\n")


def bomb(path: Path) -> None:
    """A PNG of a few bytes that claims 60000 x 60000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    lines = zlib.compress(b"\0" * 1000)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


# Name -> (writer, what the reason must say)
BAD = {
    "truncated.jpg": (truncated_jpeg, "truncated"),
    "empty.jpg": (zero_bytes, "not an image"),
    "page.jpg": (html, "not an image"),
    "bomb.png": (bomb, "too large"),
}


# ------------------------------------------------------------ good, though rare


def cmyk(path: Path) -> np.ndarray:
    """Writes a CMYK JPEG; returns the expected image."""
    Image.fromarray(np.full((24, 24, 4), (0, 255, 255, 0), np.uint8), "CMYK").save(path, quality=95)
    return np.full((24, 24, 3), (255, 0, 0), np.uint8)


def sixteen_bit(path: Path) -> np.ndarray:
    """Writes a gray 16-bit PNG; returns the expected image."""
    values = np.linspace(0, 65535, 24 * 24).reshape(24, 24)
    Image.fromarray(values.astype(np.uint16)).save(path)
    gray = (values.astype(np.uint16) * (255 / 65535) + 0.5).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def palette_alpha(path: Path) -> np.ndarray:
    """Writes a palette PNG whose right half is transparent; returns the expected image."""
    indices = np.zeros((24, 24), np.uint8)
    indices[:, 12:] = 1
    image = Image.fromarray(indices, "P")
    image.putpalette([10, 200, 30, 250, 250, 250])
    image.save(path, transparency=bytes((255, 0)))
    truth = np.zeros((24, 24, 3), np.uint8)
    truth[:, :12] = (10, 200, 30)
    return truth


def exif_rotated(path: Path) -> np.ndarray:
    """Writes a JPEG that asks to be turned a quarter; returns the expected image."""
    image = smooth(24, 24, seed=5)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise when shown
    Image.fromarray(np.rot90(image)).save(path, quality=95, exif=exif)
    return image


def one_pixel_wide(path: Path) -> np.ndarray:
    """Writes a image of 1 x 40 pixels; returns the middle of it."""
    Image.fromarray(np.full((40, 1, 3), (40, 90, 200), np.uint8)).save(path)
    return np.full((24, 24, 3), (40, 90, 200), np.uint8)


# Name -> writer, which returns the image (24, 24, 3) uint8 to be read
GOOD = {
    "cmyk.jpg": cmyk,
    "deep.png": sixteen_bit,
    "palette.png": palette_alpha,
    "rotated.jpg": exif_rotated,
    "thin.png": one_pixel_wide,
}


def write_bad(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (write, _) in BAD.items():
        write(folder / name)


def write_good(folder: Path) -> dict[str, np.ndarray]:
    """Returns stem -> the image to be read."""
    folder.mkdir(parents=True, exist_ok=True)
    return {Path(name).stem: write(folder / name) for name, write in GOOD.items()}


# ------------------------------------------------------------ pairs


def missing_target(root: Path) -> str:
    """An input without a target; returns its path below the root."""
    save(root / "input" / "lonely.png", smooth(24, 24))
    return "input/lonely.png"


def other_size(root: Path) -> str:
    """An input and a target of different sizes; returns the input's path below the root."""
    save(root / "input" / "unlike.png", smooth(24, 24))
    save(root / "target" / "unlike.png", smooth(24, 32))
    return "input/unlike.png"


# ------------------------------------------------------------ tars


def write_members(path: Path, files: dict[str, bytes], links: dict[str, str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name, to in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.SYMTYPE, to
            tar.addfile(info)


def truncated_tar(path: Path, files: dict[str, bytes]) -> None:
    """A tar cut in the middle of its last member."""
    write_members(path, files)
    with tarfile.open(path) as tar:
        last = tar.getmembers()[-1]
        stop = last.offset_data + last.size // 2
    path.write_bytes(path.read_bytes()[:stop])


def climbing_member(path: Path) -> str:
    """A tar with a good image and one whose path climbs; returns that path."""
    data = encoded(smooth(24, 24), "jpg")
    write_members(path, {"000000000.jpg": data, "../x.jpg": data})
    return "../x.jpg"


def symlink_member(path: Path) -> str:
    """A tar with a good image and a link to a file outside; returns the link's name."""
    data = encoded(smooth(24, 24), "jpg")
    write_members(path, {"000000000.jpg": data}, {"000000001.jpg": "/etc/hostname"})
    return "000000001.jpg"


def broken_rle(path: Path) -> str:
    """A tar of SA-1B with a good image and one with a cut mask; returns the path of the bad one."""
    image, mask = smooth(), np.zeros((32, 32), bool)
    mask[4:20, 4:20] = True
    good, bad = (sa1b_json(name, [mask]) for name in ("sa_1", "sa_2"))
    cut = bad["annotations"][0]["segmentation"]
    cut["counts"] = cut["counts"][:-1] + "P"
    files: dict[str, bytes] = {}
    for name, value in (("sa_1", good), ("sa_2", bad)):
        files |= {f"{name}.jpg": jpeg(image), f"{name}.json": json.dumps(value).encode()}
    write_members(path, files)
    return f"{path.name}/sa_2.json"


# ------------------------------------------------------------ videos


def write_mp4(path: Path, shown: Sequence[np.ndarray], header_first: bool = False) -> bytes:
    """Writes frames (H, W, 3) uint8 with a key frame every fourth; returns the file's bytes."""
    options = {"movflags": "faststart"} if header_first else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "4", "bf": "0"})
        stream.height, stream.width = shown[0].shape[:2]
        for frame in shown:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path.read_bytes()


def frame_position(path: Path, number: int) -> tuple[int, int]:
    """Offset and size of a frame in a video file, in bytes."""
    with av.open(str(path), "r") as container:
        packet = [each for each in container.demux(video=0) if each.size][number]
        return packet.pos or 0, packet.size


def corrupt_mp4(path: Path, shown: Sequence[np.ndarray]) -> None:
    """A video whose fifth frame, from which others are predicted, is corrupted."""
    data = bytearray(write_mp4(path, shown))
    start, size = frame_position(path, 4)
    middle, stop = start + size // 3, start + size // 2
    rng = np.random.default_rng(0)
    data[middle:stop] = rng.integers(0, 256, stop - middle, dtype=np.uint8).tobytes()
    path.write_bytes(bytes(data))


def truncated_mp4(path: Path, shown: Sequence[np.ndarray]) -> None:
    """A video cut in the middle, whose header, at its end, is gone."""
    data = write_mp4(path, shown)
    path.write_bytes(data[: len(data) // 2])


def ending_mp4(path: Path, shown: Sequence[np.ndarray], frames: int) -> None:
    """A video with its header first, cut after some frames: ffmpeg reads these and is silent."""
    data = write_mp4(path, shown, header_first=True)
    path.write_bytes(data[: frame_position(path, frames)[0]])


def playlist(path: Path, other: Path) -> None:
    """A playlist called as a video, which would have another file opened."""
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{other}\n#EXT-X-ENDLIST\n")


def sound(path: Path) -> None:
    """An MP4 without images."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode())
