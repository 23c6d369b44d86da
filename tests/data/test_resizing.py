"""Images as squares: equal to torchvision's arithmetic, which is written out here once more."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from delvm.data.resizing import (
    ResizeMode,
    parse_resize_mode,
    place_points,
    resize_center_crop,
    to_square,
)
from delvm.errors import UserError


def noise(size, seed=0, bands=3):
    shape = (size[1], size[0], bands)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    return Image.fromarray(pixels if bands > 1 else pixels[:, :, 0])


def half_to_even(doubled):
    """Half of an integer, rounded half to even."""
    down = doubled // 2
    return down if doubled % 2 == 0 or down % 2 == 0 else down + 1


def torchvision_sizes(width, height, size):
    """Sizes after Resize(size), and the corner of CenterCrop(size), in whole numbers."""
    short = min(width, height)
    new = [size if side == short else size * side // short for side in (width, height)]
    return new, [half_to_even(side - size) for side in new]


def random_sizes(count=200):
    rng = np.random.default_rng(9)
    return [tuple(int(side) for side in rng.integers(20, 700, 2)) for _ in range(count)]


@pytest.mark.parametrize("start", range(0, 200, 50))
def test_short_side_equals_torchvision_at_random_sizes(start):
    for width, height in random_sizes()[start : start + 50]:
        image = noise((width, height))
        size, (left, top) = torchvision_sizes(width, height, 64)
        resized = np.asarray(image.resize(size, Image.Resampling.BILINEAR))
        expected = resized[top : top + 64, left : left + 64]
        assert (np.asarray(resize_center_crop(image, 64)) == expected).all(), (width, height)


def bilinear_weights(old, new):
    """Weights (new, old) of an antialiased bilinear filter, as 22-bit fixed-point numbers."""
    scale = max(Fraction(old, new), Fraction(1))
    matrix = np.zeros((new, old), np.int64)
    for row in range(new):
        center = (row + Fraction(1, 2)) * Fraction(old, new)
        first = max(0, int(center - scale + Fraction(1, 2)))
        last = min(old, int(center + scale + Fraction(1, 2)))
        weights = {
            column: max(Fraction(0), 1 - abs((column + Fraction(1, 2) - center) / scale))
            for column in range(first, last)
        }
        total = sum(weights.values())
        for column, weight in weights.items():
            matrix[row, column] = int(weight / total * 2**22 + Fraction(1, 2))
    return matrix


def slow_short_side(pixels, size):
    """What torchvision's Resize and CenterCrop make of (H, W) uint8, pixel by pixel."""
    height, width = pixels.shape
    (new_width, new_height), (left, top) = torchvision_sizes(width, height, size)
    values = pixels.astype(np.int64)
    if new_width != width:
        values = (values @ bilinear_weights(width, new_width).T + 2**21) >> 22
    if new_height != height:
        values = (bilinear_weights(height, new_height) @ values + 2**21) >> 22
    return values.clip(0, 255)[top : top + size, left : left + size]


@pytest.mark.parametrize(
    "size", [(37, 53), (53, 37), (16, 30), (30, 16), (7, 13), (5, 9), (100, 99), (19, 31)]
)
def test_short_side_equals_the_formula(size):
    image = noise(size, bands=1)
    assert (np.asarray(to_square(image, 8)) == slow_short_side(np.asarray(image), 8)).all()


# Of the values (7 i^2) mod 256 in reading order, as squares of 4 pixels.
GOLDEN = {
    (9, 4): [[28, 63, 112, 175], [79, 240, 159, 92], [240, 15, 60, 119], [255, 156, 71, 0]],
    (15, 8): [
        [170, 114, 130, 151],
        [119, 134, 164, 184],
        [85, 138, 160, 180],
        [167, 90, 153, 162],
    ],
}


@pytest.mark.parametrize("size", GOLDEN)
def test_short_side_gives_the_golden_values(size):
    values = np.arange(size[0] * size[1]).reshape(size[::-1]) ** 2 * 7 % 256
    square = np.asarray(to_square(Image.fromarray(values.astype(np.uint8)), 4))
    assert square.tolist() == GOLDEN[size]


@pytest.mark.slow
def test_short_side_is_what_deblurring_and_deraining_data_need():
    """1280 x 720 becomes 455 x 256 and is cut at 100; 512 x 384 becomes 341 x 256, cut at 42."""
    assert torchvision_sizes(1280, 720, 256) == ([455, 256], [100, 0])
    assert torchvision_sizes(512, 384, 256) == ([341, 256], [42, 0])
    for size in ((1280, 720), (512, 384)):
        ramp = Image.fromarray(np.tile((np.arange(size[0]) % 256).astype(np.uint8), (size[1], 1)))
        middle = slow_short_side(np.asarray(ramp)[: size[1]], 256)
        assert (np.asarray(to_square(ramp, 256)) == middle).all()


def test_a_strip_is_resized_completely_while_memory_allows():
    strip = noise((4000, 8))  # 500 times as long as high
    resized = np.asarray(strip.resize((8000, 16), Image.Resampling.BILINEAR))
    assert (np.asarray(to_square(strip, 16)) == resized[:, 3992:4008]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (100_000, 1), (7, 13), (1, 5_000_000)])
@pytest.mark.parametrize("mode", list(ResizeMode))
def test_squares_of_any_shape(size, mode):
    square = to_square(Image.new("RGB", size, (9, 8, 7)), 16, mode)
    assert square.size == (16, 16)
    assert square.getpixel((8, 8)) == (9, 8, 7) or mode is ResizeMode.pad


@pytest.mark.parametrize("mode", list(ResizeMode))
def test_a_square_of_the_same_size_is_unchanged(mode):
    square = noise((8, 8))
    assert (np.asarray(to_square(square, 8, mode)) == np.asarray(square)).all()


def test_squash_ignores_the_shape_as_lvm_does():
    image = noise((40, 25))
    expected = image.resize((16, 16), Image.Resampling.BICUBIC)
    assert to_square(image, 16, ResizeMode.squash).tobytes() == expected.tobytes()


def test_pad_shows_the_complete_image_on_black():
    square = np.asarray(to_square(Image.new("RGB", (40, 20), (255, 255, 255)), 16, ResizeMode.pad))
    assert (square[4:12] == 255).all() and not square[:4].any() and not square[12:].any()


def test_rounded_is_what_earlier_versions_did():
    tall = noise((16, 30))
    halved = np.asarray(tall.resize((8, 15), Image.Resampling.BILINEAR))
    assert (np.asarray(to_square(tall, 8, ResizeMode.rounded)) == halved[3:11]).all()
    assert (np.asarray(to_square(tall, 8)) == halved[4:12]).all()


def test_labels_are_never_mixed():
    labels = noise((50, 37), bands=1).point(lambda value: 85 * (value // 86))
    for mode in ResizeMode:
        square = to_square(labels, 16, mode, labels=True)
        assert set(np.unique(np.asarray(square))) <= {0, 85, 170}


@pytest.mark.parametrize("mode", list(ResizeMode))
@pytest.mark.parametrize("size", [(90, 60), (60, 90), (64, 64)])
def test_points_stay_at_what_they_mark(mode, size):
    pixels = np.zeros((size[1], size[0]), np.uint8)
    middle = np.array([size[0] // 2 + 9, size[1] // 2 - 7])
    pixels[middle[1] - 3 : middle[1] + 3, middle[0] - 3 : middle[0] + 3] = 255
    square = np.asarray(to_square(Image.fromarray(pixels), 32, mode)).astype(float)
    rows, columns = np.nonzero(square > 0)
    weights = square[rows, columns]
    found = [(np.average(axis + 0.5, weights=weights)) / 32 for axis in (columns, rows)]
    placed = place_points(middle.astype(float), *size, 32, mode)
    assert np.abs(placed - found).max() < 0.02


def test_an_unknown_mode_is_refused():
    with pytest.raises(UserError, match="resize=squish is unknown: did you mean 'squash'"):
        parse_resize_mode("squish")
