"""Answers for many clients: one worker thread computes all of them, a row of tokens at a time.

A model is bound by the memory and cores of its device, so two answers at once are no faster than
one after the other. Each row is a job of its own in the worker's queue, so a few answers take
turns: a short one need not wait for a long one, and one whose client goes away leaves nothing
running. Each holds its keys and values, so up to `Limits.max_answers` are begun; the others wait.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncGenerator, Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from delvm.data.image_io import aligned_pair, to_pil
from delvm.errors import UserError, did_you_mean
from delvm.inference.decoding import SamplingOptions
from delvm.inference.partial_answers import render, stream_rows
from delvm.inference.prompter import Prompter, pair_names
from delvm.serving.limits import Limits, Upload, open_upload, png_bytes


@dataclass(frozen=True)
class Question:
    """What a client asks.

    Attributes:
        student: its name.
        pairs: input and target of each example.
        query: the image to answer.
        sampling: as of `delvm.inference.decoding.SamplingConfig`.
        rows: whether the rows so far are rendered, or the complete answer alone.
    """

    student: str
    pairs: tuple[tuple[Upload, Upload], ...]
    query: Upload
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    rows: bool = False


class Step(NamedTuple):
    """An answer after one more row of tokens.

    Attributes:
        ids: the tokens generated so far.
        total: how many there will be.
        seconds: computed for this answer so far, without waiting.
        image: the answer, RGB; None before the last row, unless rows are rendered.
        round_trip: the query through the tokenizer and back, the best that an answer can look.
        psnr: of the round trip, in dB.
    """

    ids: list[int]
    total: int
    seconds: float
    image: Image.Image | None
    round_trip: Image.Image
    psnr: float

    @property
    def is_complete(self) -> bool:
        """Whether all rows are there."""
        return len(self.ids) == self.total


class Service:
    """Students that answer questions.

    Attributes:
        prompters: name -> student with its tokenizer; the first is the default.
        limits: of what is accepted.
    """

    def __init__(self, prompters: Mapping[str, Prompter], limits: Limits) -> None:
        self.prompters, self.limits = dict(prompters), limits
        self._worker = ThreadPoolExecutor(1, "delvm-answers")
        self._slots = _Slots(limits.max_answers)

    def close(self) -> None:
        """End the worker after the row that it computes."""
        self._worker.shutdown(cancel_futures=True)

    def warm_up(self) -> None:
        """Answer a question to each student, as the first answer also compiles and allocates."""
        gray = png_bytes(Image.new("RGB", (8, 8), "gray"))
        for name in self.prompters:
            for _ in self.stream(Question(name, ((gray, gray),), gray, rows=True)):
                pass

    def prompter(self, student: str) -> Prompter:
        """A student by its name.

        Raises:
            UserError: there is none.
        """
        if student not in self.prompters:
            raise UserError(f"unknown student '{student}': {did_you_mean(student, self.prompters)}")
        return self.prompters[student]

    def stream(self, question: Question) -> Generator[Step]:
        """Answer a question; waits for a slot and for the worker.

        Raises:
            UserError: the question cannot be answered as it is.
        """
        steps, slot = self._steps(question), self._slots.ask()
        try:
            slot.result()
            while (step := self._submit(steps).result()) is not None:
                yield step
        finally:
            self._end(steps, slot)

    async def astream(self, question: Question) -> AsyncGenerator[Step]:
        """As `stream`, for an event loop."""
        steps, slot = self._steps(question), self._slots.ask()
        try:
            await asyncio.wrap_future(slot)
            while (step := await asyncio.wrap_future(self._submit(steps))) is not None:
                yield step
        finally:
            self._end(steps, slot)

    def _end(self, steps: Generator[Step], slot: "Future[None]") -> None:
        """Free what an answer holds, after the row that is computed, and then its slot."""
        try:
            closed = self._worker.submit(steps.close)
        except RuntimeError:  # the worker has ended
            self._slots.leave(slot)
        else:
            closed.add_done_callback(lambda _: self._slots.leave(slot))

    def _submit(self, steps: Generator[Step]) -> "Future[Step | None]":
        return self._worker.submit(next, steps, None)

    def _steps(self, question: Question) -> Generator[Step]:
        """The steps of an answer, each computed when it is asked for."""
        start, seconds = perf_counter(), 0.0
        prompter = self.prompter(question.student)
        pairs, query = self._open(question)
        sampling: Any = question.sampling
        round_trip, psnr = None, math.nan
        for row in stream_rows(prompter, pairs, query, **sampling):
            if round_trip is None:
                [round_trip] = to_pil(prompter.tokenizer.decode(row.query_ids[None]))
                psnr = _psnr(row.query, round_trip)
            shown = question.rows or row.is_complete
            image = render(prompter.tokenizer, row) if shown else None
            seconds += perf_counter() - start
            total = len(row.query_ids)
            yield Step(row.ids.tolist(), total, seconds, image, round_trip, psnr)
            start = perf_counter()

    def _open(
        self, question: Question
    ) -> tuple[list[tuple[Image.Image, Image.Image]], Image.Image]:
        """The images of a question, reduced to the size that the student sees."""
        if not question.pairs:
            raise UserError("no pairs given: show the task by one pair or more")
        prompter, limits = self.prompter(question.student), self.limits
        prompter.check_context_length(len(question.pairs))
        pairs = []
        for number, (first, second) in enumerate(question.pairs, 1):
            names = pair_names(number)
            stored = open_upload(first, names[0], limits), open_upload(second, names[1], limits)
            one, other = prompter.to_squares(aligned_pair(*stored, names))
            pairs.append((one, other))
        return pairs, open_upload(question.query, "the query", limits).upright()


class _Slots:
    """A number of slots, given in the order in which they are asked for."""

    def __init__(self, count: int) -> None:
        self._free, self._lock = count, Lock()
        self._waiting: deque[Future[None]] = deque()

    def ask(self) -> "Future[None]":
        """A future that is done once there is a slot; give it to `leave` whether it is or not."""
        slot: Future[None] = Future()
        with self._lock:
            if self._free:
                self._free -= 1
                slot.set_result(None)
            else:
                self._waiting.append(slot)
        return slot

    def leave(self, slot: "Future[None]") -> None:
        """Give a slot back to whoever waits longest, or stop waiting for it."""
        with self._lock:
            if slot.cancel():  # there was none yet
                with suppress(ValueError):
                    self._waiting.remove(slot)
                return
            while self._waiting:
                following = self._waiting.popleft()
                if following.set_running_or_notify_cancel():
                    following.set_result(None)
                    return
            self._free += 1


def _psnr(first: Image.Image, second: Image.Image) -> float:
    """Peak signal-to-noise ratio of two images of one size, in dB."""
    error = np.asarray(first).astype(np.float64) - np.asarray(second)
    mse = float(np.square(error).mean())
    return 10 * math.log10(255**2 / mse) if mse else math.inf
