"""Masks in COCO's compressed run-length encoding, read from files that are not trusted.

A mask is encoded in column-major order, as the lengths of runs of background and mask in turn,
background first. From the fourth on, a length is stored as its difference to the one before the
last. Each number is written as digits of five bits, lowest first, in characters from `0` on: bit 5
is set if another digit follows, and bit 4 of the last digit is the sign. pycocotools reads beyond
the end of a truncated string; here every character is checked.
"""

import numpy as np
import numpy.typing as npt

from delvm.errors import UserError

_FIRST = ord("0")
_MAX_DIGITS = 10  # more than any run of a real image needs, and few enough for int64

Ints = npt.NDArray[np.int64]
Runs = tuple[Ints, Ints]  # starts and stops of the runs of a mask, (n,) each


def decode_runs(counts: str, height: int, width: int) -> Runs:
    """Where the runs of a mask start and stop in the image in column-major order.

    Args:
        counts: As in the JSON.
        height, width: Of the mask.

    Returns:
        Starts and stops, each (n,) int64: row y of column x has index x * height + y.

    Raises:
        UserError: The string is invalid, or is a mask of another size.
    """
    try:
        digits = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - _FIRST
    except UnicodeEncodeError:
        raise UserError("RLE with characters outside ASCII") from None
    if not digits.size:
        raise UserError("empty RLE")
    if digits.min() < 0 or digits.max() > 63:
        raise UserError("RLE with characters that are not digits of it")
    lengths = _undo_differences(_parse_numbers(digits))
    if lengths.min() < 0 or lengths.max() > height * width:
        raise UserError(f"RLE with runs out of range for an image of {width} x {height}")
    if (total := int(lengths.sum())) != height * width:
        raise UserError(f"RLE of {total:,} pixels, the image has {width} x {height}")
    ends = np.cumsum(lengths)
    return ends[:-1:2], ends[1::2]  # the mask's runs are the second, the fourth and so on


def _parse_numbers(digits: Ints) -> Ints:
    """The numbers that digits (n,) in [0, 64) encode."""
    last = np.flatnonzero(digits & 32 == 0)
    if not last.size or last[-1] != len(digits) - 1:
        raise UserError("RLE that ends within a number")
    first = np.concatenate(([0], last[:-1] + 1))
    if (last - first).max() >= _MAX_DIGITS:
        raise UserError("RLE with a number that is too large")
    position = np.arange(len(digits)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((digits & 31) << (5 * position), first)
    negative = digits[last] & 16 != 0
    numbers: Ints = values - np.where(negative, np.int64(1) << (5 * (last - first + 1)), 0)
    return numbers


def _undo_differences(numbers: Ints) -> Ints:
    """Run lengths, of which those from the fourth on are given minus the one two before."""
    lengths = numbers.copy()
    # The first run is stored as it is; two chains of sums begin at the second and the third.
    for start in (1, 2):
        lengths[start::2] = np.cumsum(numbers[start::2])
    return lengths
