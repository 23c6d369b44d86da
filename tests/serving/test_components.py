"""Drawings: what is kept of what browsers send."""

from types import SimpleNamespace

import pytest
from fastapi import HTTPException

from delvm.errors import UserError
from delvm.serving.components import MAX_DRAWINGS, Drawings, drawing
from delvm.serving.limits import Limits, open_upload
from tests.serving.conftest import noise, png

LIMITS = Limits(max_upload_mb=1, max_pixels=10_000)


def blob(name="a", kind="composite", pixels=b"1234", **more):
    fields = {"id": name, "type": kind, "index": "null"} | more
    return SimpleNamespace(data=fields, files=[("file", pixels)])


def test_layers_are_not_kept_whatever_their_number():
    drawings = Drawings(100)
    for kind, index in (("layer", "2000000000"), ("background", "null"), ("layer", "x")):
        drawings.accept_blobs(blob(kind=kind, index=index))
    assert drawings.pop("a") is None
    drawings.accept_blobs(blob(pixels=b"composite"))
    assert drawings.pop("a") == b"composite" and drawings.pop("a") is None


def test_the_newest_drawings_are_kept_within_a_size():
    drawings = Drawings(100)
    for number in range(3):
        drawings.accept_blobs(blob(f"{number}", pixels=bytes(40)))
    assert [drawings.pop(f"{number}") for number in range(3)] == [None, bytes(40), bytes(40)]
    for number in range(2 * MAX_DRAWINGS):
        drawings.accept_blobs(blob(f"{number}"))
    kept = [number for number in range(2 * MAX_DRAWINGS) if drawings.pop(f"{number}")]
    assert kept == [*range(MAX_DRAWINGS, 2 * MAX_DRAWINGS)]


@pytest.mark.parametrize("sent", [{"a": 1}, SimpleNamespace(data={"id": "a"}, files=[("f", b"")])])
def test_another_form_is_refused_in_words(sent):
    with pytest.raises(HTTPException) as error:
        Drawings(100).accept_blobs(sent)
    assert error.value.status_code == 400 and "a drawing is a form" in error.value.detail


def test_a_drawing_is_handed_over_once():
    drawings = Drawings(10_000)
    drawings.accept_blobs(blob(pixels=png(noise(1))))
    found = drawing(drawings, {"id": "a"}, LIMITS)
    assert open_upload(found, "it", LIMITS).pixels.tobytes() == noise(1).tobytes()
    with pytest.raises(UserError, match="the drawing is no longer here: paint something more"):
        drawing(drawings, {"id": "a"}, LIMITS)
    assert drawing(drawings, {"id": None, "composite": None}, LIMITS) is None
