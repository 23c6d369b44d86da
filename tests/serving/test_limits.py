"""Images from clients: what is accepted, and why not, in words."""

import struct
import zlib
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from delvm.configs.serve import ServeConfig
from delvm.errors import UserError
from delvm.serving.limits import Limits, on_white, open_upload
from tests.serving.conftest import noise, png

LIMITS = Limits(max_upload_mb=1, max_pixels=10_000)


def test_every_limit_is_a_setting():
    config = ServeConfig()
    assert Limits(**{each.name: getattr(config, each.name) for each in fields(Limits)}) == Limits()


def test_bytes_and_files_are_opened(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(png(noise(0)))
    for upload in (file, file.read_bytes()):
        assert open_upload(upload, "the query", LIMITS).pixels.tobytes() == noise(0).tobytes()


def header(width: int, height: int) -> bytes:
    """A PNG that states a size and holds no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", zlib.crc32(chunk)) + b"\x00\x00\x00\x00IDAT"
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + end


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello", "the query cannot be read as an image: send PNG, JPEG, WebP, GIF or BMP"),
        (b"", "cannot be read as an image"),
        (png(noise(0))[:90], "cannot be read as an image"),
        (bytes(2**20 + 1), "the query has 1.0 MiB, above the limit of 1 MiB: send a smaller file"),
        (png(noise(0, (101, 100))), "the query has 101 x 100 pixels, above the limit of 10,000"),
        (header(60_000, 60_000), "too large|above the limit"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as an image"),
    ],
)
def test_others_are_refused_in_words(data, words):
    with pytest.raises(UserError, match=words):
        open_upload(data, "the query", LIMITS)


def test_decoders_of_rare_formats_are_not_tried(tmp_path):
    noise(0).save(tmp_path / "a.tiff")
    with pytest.raises(UserError, match="send PNG, JPEG, WebP, GIF or BMP"):
        open_upload(tmp_path / "a.tiff", "the query", LIMITS)


def test_a_drawing_is_on_white():
    drawing = np.zeros((20, 20, 4), np.uint8)
    drawing[5, 5] = (255, 0, 0, 255)
    image = open_upload(on_white(png(Image.fromarray(drawing)), "it", LIMITS), "it", LIMITS).pixels
    assert image.getpixel((0, 0)) == (255, 255, 255) and image.getpixel((5, 5)) == (255, 0, 0)


def test_a_file_that_has_been_deleted_is_asked_for_again(tmp_path):
    words = "the query is no longer here, since uploads are deleted after an hour: upload it again"
    for open_it in (open_upload, on_white):
        with pytest.raises(UserError, match=words):
            open_it(tmp_path / "a.png", "the query", LIMITS)
