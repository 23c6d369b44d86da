"""What happens on the page: a prompt is picked, files are checked, an answer appears."""

import asyncio
import math
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
from PIL import Image

from delvm.errors import UserError
from delvm.inference.decoding import Decoding, SamplingOptions
from delvm.serving.cache import Cache
from delvm.serving.components import Drawings, as_shown, drawing, uploaded_file
from delvm.serving.limits import Upload, open_upload
from delvm.serving.prompt_sets import PromptSet
from delvm.serving.service import Question, Service, Step

OWN = "your own"  # the choice of a task that empties the boxes
UPLOAD, DRAW = "upload", "draw"  # the tabs of the query
SHOWN_SIDE = 512  # of answers on the page, in pixels; downloads have their own size


class Form(NamedTuple):
    """What the page holds when an answer is asked for."""

    students: list[str]
    pairs: tuple[tuple[Upload, Upload], ...]
    query: Upload
    sampling: SamplingOptions


class Events:
    """The handlers of one page."""

    def __init__(
        self,
        service: Service,
        prompt_sets: Sequence[PromptSet],
        cache: Cache,
        drawings: Drawings,
        max_pairs: int,
    ) -> None:
        self.service, self.cache, self.drawings = service, cache, drawings
        self.max_pairs = max_pairs
        self.prompt_sets = {each.name: each for each in prompt_sets}
        self.names = list(service.prompters)

    def pick(self, task: str) -> list[Any]:
        """Values of all pairs, in a row, then of the query; `OWN` empties them."""
        prompt = self.prompt_sets.get(task)
        if prompt is None:
            return [None] * (2 * self.max_pairs + 1)
        files = [str(file) for pair in prompt.pairs[: self.max_pairs] for file in pair]
        return [*files, *[None] * (2 * self.max_pairs - len(files)), str(prompt.query)]

    def check(self, sent: Mapping[str, Any] | None) -> Any:
        """Refuse a file that is not an image, as soon as it is uploaded."""
        try:
            if (upload := uploaded_file(sent)) is not None:
                open_upload(upload, "the file", self.service.limits)
        except UserError as error:
            gr.Warning(str(error), duration=None, title="Not accepted")
            return None
        return gr.skip()

    async def answer(self, *values: Any) -> AsyncGenerator[list[Any]]:
        """Answers of all chosen students, one after the other, a row at a time.

        It is asynchronous, since Gradio could not stop a thread that waits for its turn.

        Args:
            values: of the inputs in the order of `delvm.serving.page`, as the browser sends them.

        Yields:
            values of status, round trip, the answer of each student, and the download.
        """
        try:
            form = await asyncio.to_thread(self._form, values)
            await asyncio.to_thread(self.cache.check)
            async with aclosing(self._answer(form)) as updates:
                async for update in updates:
                    yield update
        except UserError as error:
            raise as_shown(error) from None
        except Exception as error:
            # Gradio prints it to the log.
            raise gr.Error("the server failed: its log has the reason", duration=None) from error

    def _form(self, values: Sequence[Any]) -> Form:
        students, *rest = values
        boxes, rest = rest[: 2 * self.max_pairs], rest[2 * self.max_pairs :]
        uploaded, painted, tab, decoding, temperature, top_k, top_p, guidance, seed = rest
        sampling: SamplingOptions = {
            "decoding": decoding,
            "guidance": _number("Guidance", guidance),
        }
        if decoding == Decoding.sample:
            sampling |= {
                "temperature": _number("Temperature", temperature),
                "top_k": int(_number("Top k", top_k)) or None,
                "top_p": _number("Top p", top_p),
                "seed": int(_number("Seed", seed or 0)),
            }
        chosen = [name for name in self.names if name in (students or [])]
        if not chosen:
            raise UserError("no student is chosen: choose one or more")
        query: Upload | None = uploaded_file(uploaded)
        if tab == DRAW:
            query = drawing(self.drawings, painted, self.service.limits)
        if query is None:
            what = "draw something" if tab == DRAW else "upload an image"
            raise UserError(f"no query: {what}, or pick a task")
        pairs = _pairs([uploaded_file(each) for each in boxes])
        return Form(chosen, pairs, query, sampling)

    async def _answer(self, form: Form) -> AsyncGenerator[list[Any]]:
        folder = Path()
        shown: dict[str, str] = {}
        lines: dict[str, str] = {}
        answers: dict[str, Image.Image] = {}
        for index, name in enumerate(form.students):
            question = Question(name, form.pairs, form.query, form.sampling, rows=True)
            async with aclosing(self.service.astream(question)) as steps:
                async for step in steps:
                    assert step.image is not None
                    answers[name] = step.image
                    round_trip: Any = gr.skip()
                    if not shown:  # the first step of all
                        folder = self._new_folder()
                        round_trip = await _save(enlarged(step.round_trip), folder, "round_trip")
                    file = f"{index}_{len(step.ids)}"
                    shown[name] = await _save(enlarged(step.image), folder, file)
                    lines[name] = describe(name, step)
                    images = [shown.get(each) for each in self.names]
                    yield ["\n\n".join(lines.values()), round_trip, *images, gr.skip()]
        file = await _save(side_by_side([*answers.values()]), folder, "answer")
        download = gr.DownloadButton(value=file, interactive=True)
        yield [gr.skip()] * (2 + len(self.names)) + [download]

    def _new_folder(self) -> Path:
        """A folder for the files of an answer, made when there is one to write.

        Gradio names files by their content, and would write one a second time while a browser reads
        it, when two students give the same answer. A folder that stays empty is removed.
        """
        return Path(tempfile.mkdtemp(prefix="answer-", dir=self.cache.folder))


def _number(label: str, value: Any) -> float:
    """The value of a box, which a browser sends as null if it is empty."""
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UserError(f"{label} is not a number: enter one")
    return value


def _pairs(boxes: Sequence[Upload | None]) -> tuple[tuple[Upload, Upload], ...]:
    """The pairs that are complete; empty boxes are left out.

    Raises:
        UserError: only one image of a pair is given.
    """
    pairs = []
    for number, (first, second) in enumerate(zip(boxes[::2], boxes[1::2], strict=True), 1):
        if first is not None and second is not None:
            pairs.append((first, second))
        elif first is not None or second is not None:
            missing = "input" if first is None else "target"
            raise UserError(f"pair {number} has no {missing}: add it, or remove the other image")
    return tuple(pairs)


def describe(name: str, step: Step) -> str:
    """One line about an answer so far."""
    count = f"{len(step.ids)} of {step.total} tokens"
    speed = f"{len(step.ids) / step.seconds:.0f} tokens/s" if step.seconds else ""
    line = f"**{name}**: {count}, {step.seconds:.1f} s ({speed})"
    return f"{line}. Tokenizer's round trip: {step.psnr:.1f} dB" if step.is_complete else line


def enlarged(image: Image.Image) -> Image.Image:
    """A small image with each pixel as a square, so that browsers do not blur it."""
    times = max(1, SHOWN_SIDE // image.width)
    size = (image.width * times, image.height * times)
    return image.resize(size, Image.Resampling.NEAREST)


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Images in a row, at their own size."""
    width = sum(image.width for image in images)
    sheet = Image.new("RGB", (width, max(image.height for image in images)))
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width
    return sheet


async def _save(image: Image.Image, folder: Path, name: str) -> str:
    file = folder / f"{name}.png"
    await asyncio.to_thread(image.save, file)
    return str(file)
