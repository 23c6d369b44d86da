"""Where answers to queries are written, and the image grids that show them: names alone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from delvm.errors import UserError
from delvm.inference.files.prompt_files import PairFiles, PromptLine
from delvm.inference.files.query_files import QueryFiles, find_queries
from delvm.progress import log

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
    """What is answered in which files, and the image grids that show all.

    Attributes:
        folder: the directory that all are in or below; None for one answer in a file that is named.
    """

    questions: list[Question]
    grids: list[Path]
    folder: Path | None


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
    return OutputPaths(questions, _grid_paths(path, questions), path)


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
    return OutputPaths(questions, grids, path)


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
    return OutputPaths([question], [grid], None)
