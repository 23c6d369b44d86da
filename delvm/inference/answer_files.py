"""Where answers to queries are written, and the image grids that show them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from delvm.errors import UserError
from delvm.inference.query_files import find_queries
from delvm.progress import log
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ROWS_PER_GRID = 16  # one row per query
MAX_NAMES = 20  # that are listed in one line


@dataclass(frozen=True)
class Question:
    """A query, and the file that its answer is written to."""

    query: Path
    answer: Path


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
    if found.others:
        log(f"generate: not images, left out: {shorten([each.name for each in found.others])}")
    if path.suffix and not path.is_dir():
        return _one_file(query, found.images, path)
    if path.exists() and not path.is_dir():
        raise UserError(f"output {path} is a file: set output to a directory or to FILE.png")
    if path.resolve() == Path(query).resolve():
        raise UserError(f"output and query are both {path}: set output to another directory")
    names = [each.relative_to(found.root).with_suffix("") for each in found.images]
    count = Counter(names)
    questions = []
    for each, name in zip(found.images, names, strict=True):
        if count[name] > 1 or name.with_name(each.name) in count:
            name = name.with_name(each.name)
        questions.append(Question(each, path / name.with_name(f"{name.name}_answer.png")))
    return OutputPaths(questions, grid_paths(path, questions))


def grid_paths(folder: Path, questions: Sequence[Question]) -> list[Path]:
    """The image grids in a directory, each of `ROWS_PER_GRID` answers."""
    count = -(-len(questions) // ROWS_PER_GRID)
    if len(questions) == 1:
        name = questions[0].answer.stem.removesuffix("_answer")
        return [folder / f"{name}_grid.png"]
    if count == 1:
        return [folder / "grid.png"]
    return [folder / f"grid_{number + 1}.png" for number in range(count)]


def shorten(names: Sequence[str]) -> str:
    """Names in one line, the first of them where there are many."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def _one_file(query: str, images: Sequence[Path], output: Path) -> OutputPaths:
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"output {output}: unknown suffix '{output.suffix}': set output to a directory, or to "
            f"a file that ends in {', '.join(SUFFIXES)}"
        )
    if len(images) > 1 or Path(query).is_dir():
        kind = "a directory" if Path(query).is_dir() else f"{len(images)} images"
        raise UserError(f"query {query} is {kind}, output {output} one file: set output=DIR")
    grid = output.with_name(f"{output.stem}_grid.png")
    if images[0].resolve() in (output.resolve(), grid.resolve()):
        raise UserError(f"output would replace the query {images[0]}: set output to another name")
    return OutputPaths([Question(images[0], output)], [grid])


class AnswerWriter:
    """Writes each answer as it comes, and an image grid as soon as its rows are complete."""

    def __init__(self, files: OutputPaths, prompt: Sequence[Image.Image]) -> None:
        """
        Args:
            files: what is written.
            prompt: input and target of each pair in a row.
        """
        self.files, self.prompt = files, prompt
        self.count = 0
        self._rows: list[tuple[Image.Image, Image.Image]] = []

    def write(self, query: Image.Image, answer: Image.Image) -> None:
        """Write the answer to the next query."""
        _save(answer, self.files.questions[self.count].answer)
        self._rows.append((query, answer))
        self.count += 1
        if len(self._rows) == ROWS_PER_GRID or self.count == len(self.files.questions):
            path = self.files.grids[(self.count - 1) // ROWS_PER_GRID]
            _save(_grid(self.prompt, self._rows, max(*query.size, 128)), path)
            self._rows = []


def _grid(
    prompt: Sequence[Image.Image], rows: Sequence[tuple[Image.Image, Image.Image]], cell: int
) -> Image.Image:
    """One row per query: the prompt's pairs, the query, the answer."""
    titles = [f"{side} {i + 1}" for i in range(len(prompt) // 2) for side in ("input", "target")]
    return image_grid([[*prompt, *each] for each in rows], [*titles, "query", "answer"], cell)


def _save(image: Image.Image, path: Path) -> None:
    lossy = path.suffix.lower() in (".jpg", ".jpeg", ".webp")
    options: dict[str, Any] = {"quality": 95} if lossy else {}
    with atomic_path(path) as tmp:
        image.save(tmp, **options)
