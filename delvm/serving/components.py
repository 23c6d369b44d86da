"""Inputs of the page, whose uploaded files are handed over as they are, unopened.

Gradio would open and convert images before a handler sees them, without limits. The handlers are
registered with ``preprocess=False``, and get what the browser has sent: a dictionary with the path
of an uploaded file, which the gate has checked. `open_upload` opens it, with errors in words.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from delvm.errors import UserError
from delvm.serving.limits import Limits, Upload, on_white

CANVAS = 512  # side of the sheet for drawings, in pixels
MAX_DRAWINGS = 16  # that wait to be handed over; the oldest goes first


def image_input(label: str, **options: Any) -> gr.Image:
    """A box for an image, see `uploaded_file`."""
    return gr.Image(
        label=label, type="filepath", sources=["upload"], format="png", interactive=True,
        buttons=[], **options,
    )  # fmt: skip


def drawing_input(label: str, **options: Any) -> gr.ImageEditor:
    """A sheet to paint on, see `drawing`."""
    sheet = gr.ImageEditor(
        label=label, type="filepath", format="png", canvas_size=(CANVAS, CANVAS), layers=False,
        sources=["upload", "clipboard"], transforms=(), buttons=[], interactive=True,
        brush=gr.Brush(default_size=24, colors=["#111827", "#dc2626", "#2563eb", "#16a34a"]),
        **options,
    )  # fmt: skip
    sheet.blob_storage = _Newest(MAX_DRAWINGS)
    return sheet


def uploaded_file(sent: Mapping[str, Any] | None) -> Path | None:
    """The file of a box, as the browser sends it; None if the box is empty."""
    path = (sent or {}).get("path")
    return Path(path) if path else None


def drawing(sheet: gr.ImageEditor, sent: Mapping[str, Any] | None, limits: Limits) -> bytes | None:
    """The PNG of a drawing on white, as the browser sends it; None if the sheet is empty.

    Raises:
        UserError: it is too large or damaged.
    """
    upload: Upload | None = None
    if sent and sent.get("id"):  # its pixels have been sent before
        blobs = sheet.blob_storage.pop(sent["id"], None)
        upload = None if blobs is None else blobs.composite
    elif sent:
        upload = uploaded_file(sent.get("composite"))
    return None if upload is None else on_white(upload, "the drawing", limits)


def as_shown(error: UserError) -> gr.Error:
    """An error as the page shows it, until it is closed."""
    return gr.Error(str(error), duration=None, print_exception=False)


class _Newest(OrderedDict[str, Any]):
    """A dictionary of the newest entries."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._size = size

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > self._size:
            self.popitem(last=False)
