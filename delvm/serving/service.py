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
from typing import NamedTuple

import numpy as np
from PIL import Image

from delvm.data.image_io import to_pil
from delvm.errors import UserError, did_you_mean
from delvm.inference.decoding import SamplingConfig, SamplingOptions
from delvm.inference.partial_answers import render, stream_rows
from delvm.inference.prompter import Prompter, pair_names
from delvm.serving.limits import Limits, Upload, open_pair, open_upload, png_bytes


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
        """Answer a question to each student, as the first answer also compiles and allocates.

        Raises:
            UserError: a student's context holds no pair.
        """
        gray = png_bytes(Image.new("RGB", (8, 8), "gray"))
        for name in self.prompters:
            try:
                for _ in self.stream(Question(name, ((gray, gray),), gray, rows=True)):
                    pass
            except UserError as error:
                raise UserError(f"student '{name}': {error}") from None

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
        """The steps of an answer, each computed when it is asked for.

        Raises:
            UserError: its student, number of pairs or sampling cannot be used. What is wrong with
                its images is found with the first step, since it takes long to open them.
        """
        prompter = self.prompter(question.student)
        if not question.pairs:
            raise UserError("no pairs given: show the task by one pair or more")
        prompter.check_context_length(len(question.pairs))
        SamplingConfig(**question.sampling)
        return self._compute(question, prompter)

    def _compute(self, question: Question, prompter: Prompter) -> Generator[Step]:
        start, seconds = perf_counter(), 0.0
        pairs, query = self._open(question, prompter)
        round_trip, psnr = None, math.nan
        for row in stream_rows(prompter, pairs, query, **question.sampling):
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
        self, question: Question, prompter: Prompter
    ) -> tuple[list[tuple[Image.Image, Image.Image]], Image.Image]:
        """The images of a question, those of pairs reduced to the size that the student sees."""
        pairs = []
        for number, pair in enumerate(question.pairs, 1):
            one, other = prompter.to_squares(open_pair(pair, pair_names(number), self.limits))
            pairs.append((one, other))
        return pairs, open_upload(question.query, "the query", self.limits).upright()


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
