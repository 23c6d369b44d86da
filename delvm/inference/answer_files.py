"""Where answers to queries are written, and the image grids that show them."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from PIL import Image

from delvm.data.image_io import open_image
from delvm.errors import UserError
from delvm.inference.prompt_files import PairFiles, PromptLine
from delvm.inference.query_files import QueryFiles, find_queries
from delvm.progress import log
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid

if TYPE_CHECKING:  # torch takes seconds
    from delvm.inference.prompter import Answer

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ROWS_PER_GRID = 16  # one row per query
MAX_NAMES = 20  # that are listed in one line


@dataclass(frozen=True)
class Question:
    """A query, and the file that its answer is written to.

    Attributes:
        query: the image to answer.
        answer: the file.
        pairs: the query's own prompt; none where all questions share one.
        target: the true answer, if it is known.
    """

    query: Path
    answer: Path
    pairs: tuple[PairFiles, ...] = ()
    target: Path | None = None

    @property
    def inputs(self) -> list[Path]:
        """What the answer depends on, apart from a shared prompt: pairs, then the query."""
        return [*(image for pair in self.pairs for image in pair), self.query]


@dataclass(frozen=True)
class OutputPaths:
    """What is answered in which files, and the image grids that show all."""

    questions: list[Question]
    grids: list[Path]


def plan_outputs(query: str, output: str) -> OutputPaths:
    """Name every file before any work is done.

    Answers are named by the stems of their queries, in the directories that these have below that
    of a pattern; and by the complete names where two in a directory have the same stem.

    Args:
        query: as of `find_queries`.
        output: a directory, or a file for one query.

    Raises:
        UserError: the query does not exist, or the output cannot hold what is asked for.
    """
    path = Path(output)
    found = find_queries(query, exclude=path)
    planned = _plan(query, found, path)
    if found.others:
        log(f"generate: not images, left out: {shorten([each.name for each in found.others])}")
    return planned


def _plan(query: str, found: QueryFiles, path: Path) -> OutputPaths:
    if path.suffix and not path.is_dir():
        if len(found.images) > 1 or Path(query).is_dir():
            kind = "a directory" if Path(query).is_dir() else f"{len(found.images)} images"
            raise UserError(f"query {query} is {kind}, output {path} one file: set output=DIR")
        return _one_file(Question(found.images[0], path))
    _check_directory(path)
    if path.resolve() == Path(query).resolve():
        raise UserError(f"output and query are both {path}: set output to another directory")
    names = [each.relative_to(found.root).with_suffix("") for each in found.images]
    count = Counter(names)
    questions = []
    for each, name in zip(found.images, names, strict=True):
        if count[name] > 1 or name.with_name(each.name) in count:
            name = name.with_name(each.name)
        questions.append(Question(each, path / name.with_name(f"{name.name}_answer.png")))
    return OutputPaths(questions, _grid_paths(path, questions))


def plan_line_outputs(lines: Sequence[PromptLine], output: str) -> OutputPaths:
    """As `plan_outputs`, for lines of LVM's JSONL.

    Answers are named as the lines state or, where they do not, by the number of the line.

    Raises:
        UserError: the output cannot hold what is asked for, or a line states a path that is not
            below it, not an image's, an input's or another line's.
    """
    path = Path(output)
    if path.suffix and not path.is_dir():
        if len(lines) > 1:
            raise UserError(
                f"the prompt has {len(lines)} lines, output {path} is one file: set output=DIR"
            )
        return _one_file(_question(lines[0], path))
    _check_directory(path)
    questions = []
    for line in lines:
        name = f"{line.number:06d}_answer.png" if line.output is None else line.output
        parts = PurePath(name)
        if parts.is_absolute() or ".." in parts.parts or parts.suffix.lower() not in SUFFIXES:
            raise UserError(
                f"{line.where}: output {name!r} is not the path of an image below {path}: write a "
                f"relative path without '..' that ends in {', '.join(SUFFIXES)}"
            )
        questions.append(_question(line, path / parts))
    grids = _grid_paths(path, questions)
    taken = dict.fromkeys(grids, "an image grid")
    inputs = {file.resolve() for each in questions for file in (*each.inputs, each.target) if file}
    for line, question in zip(lines, questions, strict=True):
        if question.answer.resolve() in inputs:
            taken[question.answer] = "an input"
        if question.answer in taken:
            raise UserError(
                f"{line.where}: output {question.answer} is also that of "
                f"{taken[question.answer]}: write another name"
            )
        taken[question.answer] = line.where
    return OutputPaths(questions, grids)


def _question(line: PromptLine, answer: Path) -> Question:
    return Question(line.query, answer, line.pairs, line.targets[0] if line.targets else None)


def _check_directory(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise UserError(f"output {path} is a file: set output to a directory or to FILE.png")


def _grid_paths(folder: Path, questions: Sequence[Question]) -> list[Path]:
    count = -(-len(questions) // ROWS_PER_GRID)
    if len(questions) == 1:
        return [folder / f"{questions[0].answer.stem.removesuffix('_answer')}_grid.png"]
    if count == 1:
        return [folder / "grid.png"]
    return [folder / f"grid_{number + 1}.png" for number in range(count)]


def shorten(names: Sequence[str]) -> str:
    """Names in one line, the first of them where there are many."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _one_file(question: Question) -> OutputPaths:
    output = question.answer
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"output {output}: unknown suffix '{output.suffix}': set output to a directory, or to "
            f"a file that ends in {', '.join(SUFFIXES)}"
        )
    grid = output.with_name(f"{output.stem}_grid.png")
    for file in (*question.inputs, question.target):
        if file is not None and file.resolve() in (output.resolve(), grid.resolve()):
            raise UserError(f"output would replace the query {file}: set output to another name")
    return OutputPaths([question], [grid])


class AnswerWriter:
    """Writes each answer as it comes, and an image grid as soon as its rows are complete."""

    def __init__(
        self,
        files: OutputPaths,
        prompt: Sequence[Image.Image],
        to_squares: Callable[[Sequence[Image.Image]], list[Image.Image]],
    ) -> None:
        """
        Args:
            files: what is written.
            prompt: input and target of each pair in a row, of the prompt that all queries share.
            to_squares: makes images as the tokenizer sees them.
        """
        self.files, self.prompt, self.to_squares = files, list(prompt), to_squares
        self.count = 0
        self._rows: list[_Row] = []

    def write(self, answer: "Answer") -> None:
        """Write the answer to the next query."""
        question = self.files.questions[self.count]
        _save(answer.image, question.answer)
        target = None
        if question.target is not None:
            [target] = self.to_squares([open_image(question.target)])
        prompt = [*self.prompt, *answer.prompt]
        self._rows.append(_Row(prompt, answer.query, answer.image, target))
        self.count += 1
        if len(self._rows) == ROWS_PER_GRID or self.count == len(self.files.questions):
            _save(_grid(self._rows), self.files.grids[(self.count - 1) // ROWS_PER_GRID])
            self._rows = []


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
