"""Where answers to queries are written, and the image grids that show them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from delvm.errors import UserError
from delvm.inference.prompt_folder import find_queries
from delvm.progress import log
from delvm.storage import atomic_path
from delvm.viz.image_grid import image_grid

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
ROWS_PER_GRID = 16  # one row per query


@dataclass(frozen=True)
class OutputPaths:
    """Which query is answered in which file, and the image grids that show all."""

    queries: list[Path]
    answers: list[Path]
    grids: list[Path]


def plan_outputs(query: str, output: str) -> OutputPaths:
    """Name every file before any work is done.

    Raises:
        UserError: the query does not exist, or the output cannot hold what is asked for.
    """
    queries, others = find_queries(query)
    if others:
        log(f"generate: not images, left out: {', '.join(path.name for path in others)}")
    path = Path(output)
    if path.suffix and not path.is_dir():
        return _one_file(Path(query), path)
    if path.exists() and not path.is_dir():
        raise UserError(f"output {path} is a file: set output to a directory or to FILE.png")
    if path.resolve() == Path(query).resolve():
        raise UserError(f"output and query are both {path}: set output to another directory")
    stems = [each.stem for each in queries]
    # Two queries may differ in their suffix alone.
    names = [each.name if stems.count(each.stem) > 1 else each.stem for each in queries]
    answers = [path / f"{name}_answer.png" for name in names]
    count = -(-len(queries) // ROWS_PER_GRID)
    grids = [path / f"grid_{number + 1}.png" for number in range(count)]
    if count == 1:
        grids = [path / (f"{names[0]}_grid.png" if len(names) == 1 else "grid.png")]
    return OutputPaths(queries, answers, grids)


def _one_file(query: Path, output: Path) -> OutputPaths:
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(
            f"output {output}: unknown suffix '{output.suffix}': set output to a directory, or to "
            f"a file that ends in {', '.join(SUFFIXES)}"
        )
    if query.is_dir():
        raise UserError(f"query {query} is a directory, output {output} one file: set output=DIR")
    grid = output.with_name(f"{output.stem}_grid.png")
    if query.resolve() in (output.resolve(), grid.resolve()):
        raise UserError(f"output would replace the query {query}: set output to another name")
    return OutputPaths([query], [output], [grid])


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
        _save(answer, self.files.answers[self.count])
        self._rows.append((query, answer))
        self.count += 1
        if len(self._rows) == ROWS_PER_GRID or self.count == len(self.files.answers):
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
