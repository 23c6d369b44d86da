"""Inputs of the page, whose uploaded files are handed over as they are, unopened.

Gradio would open and convert images before a handler sees them, without limits. The handlers are
registered with ``preprocess=False``, and get what the browser has sent: a dictionary with the path
of an uploaded file, which the gate has checked. `open_upload` opens it, with errors in words.
"""

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import gradio as gr
from fastapi import HTTPException, Request

from delvm.errors import UserError
from delvm.serving.limits import Limits, Upload, on_white

CANVAS = 512  # side of the sheet for drawings, in pixels
MAX_DRAWINGS = 16  # that wait to be handed over; the oldest goes first
MAX_NAME = 64  # characters of the name that a browser gives a drawing


def image_input(label: str, **options: Any) -> gr.Image:
    """A box for an image, see `uploaded_file`."""
    return gr.Image(
        label=label, type="filepath", sources=["upload"], format="png", interactive=True,
        buttons=[], **options,
    )  # fmt: skip


def drawing_input(label: str, **options: Any) -> gr.ImageEditor:
    """A sheet to paint on, whose browser sends what is painted to `Drawings.receive`."""
    return gr.ImageEditor(
        label=label, type="filepath", format="png", canvas_size=(CANVAS, CANVAS), layers=False,
        sources=["upload", "clipboard"], transforms=(), buttons=[], interactive=True,
        brush=gr.Brush(default_size=24, colors=["#111827", "#dc2626", "#2563eb", "#16a34a"]),
        **options,
    )  # fmt: skip


def uploaded_file(sent: Mapping[str, Any] | None) -> Path | None:
    """The file of a box, as the browser sends it; None if the box is empty."""
    path = (sent or {}).get("path")
    return Path(path) if path else None


def drawing(drawings: "Drawings", sent: Mapping[str, Any] | None, limits: Limits) -> bytes | None:
    """The PNG of a drawing on white, as the browser sends it; None if the sheet is empty.

    Raises:
        UserError: it is too large, is damaged, or has been dropped.
    """
    upload: Upload | None = None
    if sent and sent.get("id"):  # its pixels have been sent before
        upload = drawings.pop(str(sent["id"]))
        if upload is None:
            raise UserError("the drawing is no longer here: paint something more, and try again")
    elif sent:
        upload = uploaded_file(sent.get("composite"))
    return None if upload is None else on_white(upload, "the drawing", limits)


def as_shown(error: UserError) -> gr.Error:
    """An error as the page shows it, until it is closed."""
    return gr.Error(str(error), duration=None, print_exception=False)


class Drawings:
    """Drawings that browsers have sent, until they are handed over with the rest of the page.

    Browsers send each layer, the background and the composite of all; only the last one counts.
    """

    def __init__(self, max_bytes: int) -> None:
        """Keep the newest drawings, up to `MAX_DRAWINGS`, and up to so many bytes of all."""
        self._max_bytes, self._lock = max_bytes, Lock()
        self._newest: dict[str, bytes] = {}

    async def receive(self, request: Request) -> None:
        """Keep the pixels that a browser sends as a form, if they are a composite.

        Answers in the stead of Gradio, which keeps all layers, one more for each number that a
        client makes up, and temporary files of forms that end early.
        """
        async with request.form(max_files=1, max_fields=16) as form:
            kind, name = form.get("type"), form.get("id")
            files = [each for each in form.values() if not isinstance(each, str)]
            if not isinstance(kind, str) or not isinstance(name, str) or not files:
                raise HTTPException(400, "a drawing has the fields type and id, and a file")
            if kind == "composite":
                self.keep(name, await files[0].read())

    def keep(self, name: str, pixels: bytes) -> None:
        """Keep the file of a drawing; older ones that exceed the limits are dropped."""
        with self._lock:
            self._newest.pop(name[:MAX_NAME], None)
            self._newest[name[:MAX_NAME]] = pixels
            while len(self._newest) > MAX_DRAWINGS or self._bytes() > self._max_bytes:
                del self._newest[next(iter(self._newest))]

    def pop(self, name: str) -> bytes | None:
        """Hand over a drawing; None if it has been dropped."""
        with self._lock:
            return self._newest.pop(name[:MAX_NAME], None)

    def _bytes(self) -> int:
        return sum(map(len, self._newest.values()))
