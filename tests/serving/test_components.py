"""Drawings: what is kept of what browsers send."""

import pytest

from delvm.errors import UserError
from delvm.serving.components import MAX_DRAWINGS, Drawings, drawing
from delvm.serving.limits import Limits, open_upload
from tests.serving.conftest import noise, png

LIMITS = Limits(max_upload_mb=1, max_pixels=10_000)


def test_the_newest_drawings_are_kept_within_a_size():
    drawings = Drawings(100)
    for number in range(3):
        drawings.keep(f"{number}", bytes(40))
    assert [drawings.pop(f"{number}") for number in range(3)] == [None, bytes(40), bytes(40)]
    for number in range(2 * MAX_DRAWINGS):
        drawings.keep(f"{number}", b"1")
    kept = [number for number in range(2 * MAX_DRAWINGS) if drawings.pop(f"{number}")]
    assert kept == [*range(MAX_DRAWINGS, 2 * MAX_DRAWINGS)]


def test_a_drawing_is_handed_over_once():
    drawings = Drawings(10_000)
    drawings.keep("a", png(noise(1)))
    found = drawing(drawings, {"id": "a"}, LIMITS)
    assert open_upload(found, "it", LIMITS).pixels.tobytes() == noise(1).tobytes()
    with pytest.raises(UserError, match="the drawing is no longer here: paint something more"):
        drawing(drawings, {"id": "a"}, LIMITS)
    assert drawing(drawings, {"id": None, "composite": None}, LIMITS) is None
