"""Masks in the compressed run lengths of COCO, read from files that are not trusted.

A mask is read column by column; its runs are of nothing and of mask in turn, nothing first. From
the fourth on a run is written as its difference to the one before the last, and each number as
digits of five bits, lowest first, in signs from `0` on: bit 5 says that another digit follows, and
bit 4 of the last one is the number's sign. pycocotools reads on behind the end of a string that is
cut short; here every sign is checked.
"""

import numpy as np

from delvm.errors import UserError

_FIRST = ord("0")
_MAX_DIGITS = 10  # a run of any picture takes fewer; more would not fit int64


def read_runs(counts: str, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Where the runs of a mask begin and end in the picture read column by column.

    Args:
        counts: As in the JSON.
        height, width: Of the mask.

    Returns:
        Starts and stops, each (n,) int64: row y of column x is place x * height + y.

    Raises:
        UserError: it is no such string, or of a mask of another size.
    """
    try:
        signs = np.frombuffer(counts.encode("ascii"), np.uint8).astype(np.int64) - _FIRST
    except UnicodeEncodeError:
        raise UserError("RLE with signs that are no ASCII") from None
    if not signs.size:
        raise UserError("RLE that is empty")
    if signs.min() < 0 or signs.max() > 63:
        raise UserError("RLE with signs that are no digits of it")
    lengths = _undo_differences(_numbers(signs))
    if lengths.min() < 0 or lengths.max() > height * width:
        raise UserError(f"RLE with runs that no picture of {width} x {height} has")
    if (total := int(lengths.sum())) != height * width:
        raise UserError(f"RLE of {total:,} pixels, the picture has {width} x {height}")
    ends = np.cumsum(lengths)
    return ends[:-1:2], ends[1::2]  # the mask's runs are the second, the fourth and so on


def _numbers(signs: np.ndarray) -> np.ndarray:
    """The numbers that digits (n,) in [0, 64) spell."""
    last = np.flatnonzero(signs & 32 == 0)
    if not last.size or last[-1] != len(signs) - 1:
        raise UserError("RLE that ends within a number")
    first = np.concatenate(([0], last[:-1] + 1))
    if (last - first).max() >= _MAX_DIGITS:
        raise UserError("RLE with a number that no picture has")
    place = np.arange(len(signs)) - np.repeat(first, last - first + 1)
    values = np.add.reduceat((signs & 31) << (5 * place), first)
    negative = signs[last] & 16 != 0
    return values - np.where(negative, np.int64(1) << (5 * (last - first + 1)), 0)


def _undo_differences(numbers: np.ndarray) -> np.ndarray:
    """Run lengths, of which those from the fourth on are given less the one two before."""
    lengths = numbers.copy()
    # The first run stands alone; the two chains of sums begin at the second and the third.
    for start in (1, 2):
        lengths[start::2] = np.cumsum(numbers[start::2])
    return lengths
