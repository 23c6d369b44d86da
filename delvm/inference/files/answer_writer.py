"""Write answers and image grids as they come, and only those that an earlier run has not made."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from delvm.data.image_io import open_image
from delvm.inference.files.answer_files import ROWS_PER_GRID, OutputPaths, Question
from delvm.inference.files.answer_record import AnswerRecord
from delvm.inference.files.prompt_files import open_pairs
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid

if TYPE_CHECKING:  # torch takes seconds
    from delvm.inference.prompter import Answer


class AnswerWriter:
    """Writes each answer as it comes, and an image grid as soon as its rows are complete.

    Attributes:
        todo: the rows that are to be answered, in order; the others are kept from an earlier run.
    """

    def __init__(
        self,
        files: OutputPaths,
        prompt: Sequence[Image.Image],
        to_squares: Callable[[Sequence[Image.Image]], list[Image.Image]],
        record: AnswerRecord | None = None,
    ) -> None:
        """
        Args:
            files: what is written.
            prompt: input and target of each pair in a row, of the prompt that all queries share.
            to_squares: makes images as the tokenizer sees them.
            record: of the directory that answers are written to; None for a single file, which is
                always made.
        """
        self.files, self.prompt, self.to_squares = files, list(prompt), to_squares
        self.record = record
        kept = set() if record is None else record.kept(files.questions)
        self.todo = [row for row in range(len(files.questions)) if row not in kept]
        self.count = 0
        self._rows: dict[int, _Row] = {}  # new ones of the grid that is being filled
        if record is not None:
            record.start()

    def write(self, answer: "Answer") -> None:
        """Write the answer to the next query of `todo`."""
        row = self.todo[self.count]
        question = self.files.questions[row]
        _save(answer.image, question.answer)
        if self.record is not None:
            self.record.add(row, question, answer.ids.tolist())
        prompt = [*self.prompt, *answer.prompt]
        self._rows[row] = _Row(prompt, answer.query, answer.image, self._target(question))
        self.count += 1
        grid, following = row // ROWS_PER_GRID, self.todo[self.count : self.count + 1]
        if [each // ROWS_PER_GRID for each in following] != [grid]:
            self._write_grid(grid)

    def finish(self) -> None:
        """Write the ids, and image grids of earlier answers alone that are missing or old."""
        if self.record is None:
            return
        for number, path in enumerate(self.files.grids):
            if not self.record.has_grid(path, self._questions(number)):
                self._write_grid(number)
        self.record.remove_grids_but(self.files.grids)
        self.record.write_ids(self.files.questions)

    def _questions(self, grid: int) -> list[Question]:
        return self.files.questions[grid * ROWS_PER_GRID : (grid + 1) * ROWS_PER_GRID]

    def _write_grid(self, number: int) -> None:
        questions, path = self._questions(number), self.files.grids[number]
        rows = [
            self._rows.get(row) or self._read_row(question)
            for row, question in enumerate(questions, number * ROWS_PER_GRID)
        ]
        _save(_grid(rows), path)
        self._rows = {}
        if self.record is not None:
            self.record.add_grid(path, questions)

    def _read_row(self, question: Question) -> "_Row":
        """A row that an earlier run has answered."""
        own = [image for pair in open_pairs(question.pairs) for image in pair]
        *prompt, query = self.to_squares([*own, open_image(question.query)])
        answer = open_image(question.answer)
        return _Row([*self.prompt, *prompt], query, answer, self._target(question))

    def _target(self, question: Question) -> Image.Image | None:
        if question.target is None:
            return None
        return self.to_squares([open_image(question.target)])[0]


@dataclass(frozen=True)
class _Row:
    """What an image grid shows of one query."""

    prompt: list[Image.Image]
    query: Image.Image
    answer: Image.Image
    target: Image.Image | None


def _grid(rows: Sequence[_Row]) -> Image.Image:
    """One row per query: the pairs of the prompt, the query, the answer, the true answer."""
    most = max(len(row.prompt) for row in rows)
    titles = [f"{side} {i + 1}" for i in range(most // 2) for side in ("input", "target")]
    titles += ["query", "answer"]
    if any(row.target for row in rows):
        titles.append("true answer")
    images = [
        [*row.prompt, *[None] * (most - len(row.prompt)), row.query, row.answer, row.target]
        for row in rows
    ]
    cells = [each[: len(titles)] for each in images]
    return image_grid(cells, titles, max(*rows[0].query.size, 128))


def _save(image: Image.Image, path: Path) -> None:
    lossy = path.suffix.lower() in (".jpg", ".jpeg", ".webp")
    options: dict[str, Any] = {"quality": 95} if lossy else {}
    with atomic_path(path) as tmp:
        image.save(tmp, **options)
