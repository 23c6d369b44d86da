"""Opening every kind of image, resizing, and conversion to tensors and back."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, ImageOps

from delvm.data import image_io
from delvm.data.image_io import open_image, open_stored, to_pil, to_rgb, to_tensor
from delvm.errors import UserError


def save(path, image, **options):
    image.save(path, **options)
    return path


def solid(mode, color, size=(6, 4)):
    return Image.new(mode, size, color)


def noise(size=(6, 4), seed=0):
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def test_rgb_png_is_unchanged_from_path_and_bytes(tmp_path):
    image = noise()
    path = save(tmp_path / "a.png", image)
    for file in (path, str(path), path.read_bytes()):
        opened = open_image(file)
        assert opened.mode == "RGB"
        assert np.array_equal(np.asarray(opened), np.asarray(image))


def test_16_bit_gray_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        opened = open_image(save(tmp_path / name, Image.fromarray(values)))
        assert np.asarray(opened)[0, :, 0].tolist() == [0, 1, 128, 255]


def test_float_image_is_read_if_its_range_is_known(tmp_path):
    good = save(tmp_path / "a.tif", Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)))
    assert np.asarray(open_image(good))[0, :, 1].tolist() == [0, 128, 255]
    bad = save(tmp_path / "b.tif", Image.fromarray(np.array([[0, 300]], dtype=np.float32)))
    with pytest.raises(UserError, match=r"0\.\.300 of mode F are outside 0\.\.1"):
        open_image(bad)
    nan = save(tmp_path / "c.tif", Image.fromarray(np.array([[0, np.nan]], dtype=np.float32)))
    with pytest.raises(UserError, match="nan"):
        open_image(nan)


def test_alpha_is_composited_over_black(tmp_path):
    half = open_image(save(tmp_path / "a.png", solid("RGBA", (200, 100, 50, 128))))
    assert np.abs(np.asarray(half)[0, 0].astype(int) - [100, 50, 25]).max() <= 1
    gray = open_image(save(tmp_path / "b.png", solid("LA", (200, 0))))
    assert np.asarray(gray).max() == 0


def test_palette_with_a_transparent_color(tmp_path):
    image = solid("P", 1)
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    image.putpixel((0, 0), 2)
    opened = np.asarray(open_image(save(tmp_path / "a.png", image, transparency=1)))
    assert opened[0, 0].tolist() == [0, 255, 0]
    assert opened[1, 1].tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [("L", 77, (77, 77, 77)), ("1", 1, (255, 255, 255)), ("CMYK", (0, 255, 255, 0), (255, 0, 0))],
)
def test_other_modes_become_rgb(tmp_path, mode, color, expected):
    opened = open_image(save(tmp_path / "a.tif", solid(mode, color)))
    assert opened.getpixel((0, 0)) == expected


def test_cmyk_jpeg(tmp_path):
    opened = open_image(save(tmp_path / "a.jpg", solid("CMYK", (0, 255, 255, 0)), quality=95))
    assert np.abs(np.asarray(opened)[0, 0].astype(int) - [255, 0, 0]).max() < 12


def test_exif_rotation_is_applied(tmp_path):
    image = noise((6, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise when shown
    opened = open_image(save(tmp_path / "a.png", image, exif=exif))
    assert opened.size == (4, 6)
    assert np.array_equal(np.asarray(opened), np.rot90(np.asarray(image), -1))


def turned(image, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return {"exif": exif.tobytes()}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_stored_pixels_and_their_turn(tmp_path, orientation, suffix):
    image = noise((6, 4))
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", image, **turned(image, orientation), **options)
    stored = open_stored(path)
    assert np.array_equal(np.asarray(stored.pixels), np.asarray(image))
    assert stored.orientation == orientation
    with Image.open(path) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert np.array_equal(np.asarray(stored.upright()), expected)
    assert np.array_equal(np.asarray(open_image(path)), expected)
    with Image.open(path) as opened:
        once = to_rgb(opened)
    assert np.array_equal(np.asarray(once), expected)
    assert np.array_equal(np.asarray(to_rgb(once)), expected)  # not turned twice


def test_annotations_find_the_image_of_their_size(tmp_path):
    image = noise((6, 4))
    stored = open_stored(save(tmp_path / "a.png", image, **turned(image, 6)))
    assert stored.of_size((6, 4)).tobytes() == image.tobytes()
    assert stored.of_size((4, 6)).tobytes() == stored.upright().tobytes()
    assert stored.of_size((5, 5)) is None


def test_first_frame_of_an_animation(tmp_path):
    frames = [solid("RGB", color) for color in ((255, 0, 0), (0, 255, 0))]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert open_image(path).getpixel((2, 2)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "not an image"),
        (b"<html><body>404 Not Found</body></html>", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "not an image"),
    ],
)
def test_files_that_are_not_images_are_refused(tmp_path, content, reason):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"a.jpg cannot be read as an image: {reason}"):
        open_image(path)


def swapped_profile():
    """An ICC profile like sRGB's in which red and green are exchanged."""
    data = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    names = {b"rXYZ": b"gXYZ", b"gXYZ": b"rXYZ"}
    count = int.from_bytes(data[128:132], "big")
    tags = [data[132 + 12 * n : 144 + 12 * n] for n in range(count)]
    table = b"".join(names.get(tag[:4], tag[:4]) + tag[4:] for tag in tags)
    data = data[:132] + table + data[132 + 12 * count :]
    return data.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))


def test_colors_are_converted_by_the_icc_profile(tmp_path):
    image = solid("RGB", (250, 20, 30))
    opened = open_image(save(tmp_path / "a.png", image, icc_profile=swapped_profile()))
    assert np.abs(np.asarray(opened)[0, 0].astype(int) - [20, 250, 30]).max() <= 2
    clear = solid("RGBA", (250, 20, 30, 255))
    opened = open_image(save(tmp_path / "b.png", clear, icc_profile=swapped_profile()))
    assert np.abs(np.asarray(opened)[0, 0].astype(int) - [20, 250, 30]).max() <= 2


def test_profiles_of_srgb_damaged_ones_and_those_of_other_colors_change_nothing(tmp_path):
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"damaged", swapped_profile()[:200]):
        opened = open_image(save(tmp_path / "a.png", noise(), icc_profile=profile))
        assert np.array_equal(np.asarray(opened), np.asarray(noise()))
    gray = save(tmp_path / "b.png", solid("L", 77), icc_profile=swapped_profile())
    assert open_image(gray).getpixel((0, 0)) == (77, 77, 77)


def test_ids_in_16_bits_are_not_taken_for_a_black_image(tmp_path):
    ids = np.array([[0, 3, 20]], np.uint16)
    with pytest.raises(UserError, match=r"values 0..20 .*would all be black.*label_targets=true"):
        open_image(save(tmp_path / "a.png", Image.fromarray(ids)))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid",
            "git-lfs pointer.*lfs pull",
        ),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC.*pip install pillow-heif"),
        (b"\x00\x00\x00\x0cJXL \r\n", "JPEG XL"),
    ],
)
def test_files_of_other_kinds_are_named(tmp_path, content, reason):
    (tmp_path / "a.jpg").write_bytes(content)
    for file in (tmp_path / "a.jpg", content):
        with pytest.raises(UserError, match=f"cannot be read as an image: .*{reason}"):
            open_image(file, "a.jpg")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "tif", "webp", "bmp"])
def test_truncated_files_are_refused(tmp_path, suffix):
    complete = save(tmp_path / f"a.{suffix}", noise((64, 64))).read_bytes()
    half = tmp_path / f"half.{suffix}"
    half.write_bytes(complete[: len(complete) // 2])
    with pytest.raises(UserError, match="half.*cannot be read as an image"):
        open_image(half)


def test_missing_file_and_directory(tmp_path):
    with pytest.raises(UserError, match=r"image not found: .*a\.png"):
        open_image(tmp_path / "a.png")
    with pytest.raises(UserError, match="is a directory"):
        open_image(tmp_path)


def test_named_pipe_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    file = os.open(tmp_path / "a.png", os.O_RDWR | os.O_NONBLOCK)
    os.write(file, bytes(60_000))  # so that who reads it all the same does not wait forever
    with pytest.raises(UserError, match=r"a\.png is not a file"):
        open_image(tmp_path / "a.png")
    os.close(file)


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(name, data):
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9_000, 10_000, 100_000])
def test_decompression_bombs_are_refused_before_decoding(side):
    with pytest.raises(UserError, match="bomb.png is too large.*limit is 80,000,000 pixels"):
        open_image(png_header(side, side), "bomb.png")


def test_the_pixel_limit_is_exact(monkeypatch):
    buffer = io.BytesIO()
    noise((6, 4)).save(buffer, "PNG")
    monkeypatch.setattr(image_io, "MAX_PIXELS", 24)
    assert open_image(buffer.getvalue()).size == (6, 4)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 23)
    with pytest.raises(UserError, match="6 x 4 pixels"):
        open_image(buffer.getvalue())


def test_to_tensor_and_to_pil_round_trip_exactly():
    images = [noise(seed=seed) for seed in range(3)]
    pixels = to_tensor(images)
    assert pixels.shape == (3, 3, 4, 6) and pixels.dtype == torch.float32
    assert pixels[0, 2, 1, 5] == np.asarray(images[0])[1, 5, 2] / np.float32(255)
    assert torch.equal(pixels, to_tensor([np.asarray(image) for image in images]))
    for image, back in zip(images, to_pil(pixels), strict=True):
        assert np.array_equal(np.asarray(image), np.asarray(back))


def test_to_pil_rounds_half_up_and_clamps():
    values = torch.tensor([-1.0, 0.5 / 255, 0.49 / 255, 254.5 / 255, 2.0])
    image = to_pil(values.expand(1, 3, 1, 5))[0]
    assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 0, 255, 255]


def test_to_tensor_refuses_other_types_and_mixed_sizes():
    with pytest.raises(ValueError, match="no images"):
        to_tensor([])
    with pytest.raises(ValueError, match=r"float64 \(4, 6, 3\)"):
        to_tensor([np.zeros((4, 6, 3))])
    with pytest.raises(ValueError, match=r"\(4, 6\)"):
        to_tensor([solid("L", 1)])
    with pytest.raises(ValueError, match="different sizes"):
        to_tensor([noise((6, 4)), noise((4, 6))])
    with pytest.raises(ValueError, match=r"\(3, 4, 6\)"):
        to_pil(torch.zeros(3, 4, 6))
