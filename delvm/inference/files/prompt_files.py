"""Read prompts from files: a directory of image pairs, a JSON list of pairs, or LVM's JSONL.

A JSON list holds one entry per pair, ``["INPUT", "TARGET"]`` or ``{"input": .., "target": ..}``.

The evaluation scripts of LVM (github.com/ytongbai/LVM, evaluation/EVAL.md) read JSONL, in which
each line is an object: "input" lists the paths of the images that the model is given, few-shot
examples included; "target" lists the images that follow, whose perplexity or error is measured;
"output" is the path that a generated image is saved to. Here, "input" is one prompt of its own: the
input and target of each example in turn, then the query. The first image of "target" is the true
answer.

Paths are relative to the file, or to another directory (as LVM's ``input_base_dir``). Neither
format is trusted: paths stay below that directory.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from PIL import Image

from delvm.data.image_io import aligned_pair, open_stored, stored_size
from delvm.data.resizing import same_shape
from delvm.errors import UserError
from delvm.untrusted import parse_json, schema_error

INPUT, TARGET = "_img", "_label"
MAX_JSON_BYTES = 64 * 2**20  # of a file of paths, which is held in memory
MAX_NAME_BYTES = 255  # of a file, on all common file systems


class PairFiles(NamedTuple):
    """The files of one example pair."""

    input: Path
    target: Path


@dataclass(frozen=True)
class PromptLine:
    """One line of LVM's JSONL: a prompt of its own.

    Attributes:
        number: of the line, from 1.
        where: file and number of the line, for messages.
        pairs: at least one.
        query: the image to answer.
        targets: the images that follow, if they are known; the first is the true answer.
        output: where the answer is to be saved, relative to a directory, if the line states it.
    """

    number: int
    where: str
    pairs: tuple[PairFiles, ...]
    query: Path
    targets: tuple[Path, ...]
    output: str | None


def read_prompt(
    path: str | Path, base: str | Path | None = None
) -> list[tuple[Image.Image, Image.Image]]:
    """Read the example pairs of a prompt.

    Args:
        path, base: as of `find_pairs`.

    Raises:
        UserError: as `find_pairs`, or a file cannot be read as an image, or the images of a pair
            have different shapes.
    """
    return open_pairs(find_pairs(path, base))


def open_pairs(pairs: Sequence[PairFiles]) -> list[tuple[Image.Image, Image.Image]]:
    """Open the images of pairs.

    Raises:
        UserError: a file cannot be read as an image, or the images of a pair have different shapes.
    """
    return [_open_pair(pair) for pair in pairs]


def _open_pair(pair: PairFiles) -> tuple[Image.Image, Image.Image]:
    names = (str(pair.input), pair.target.name)
    return aligned_pair(open_stored(pair.input), open_stored(pair.target), names)


def find_pairs(path: str | Path, base: str | Path | None = None) -> list[PairFiles]:
    """Find the example pairs of a prompt.

    Args:
        path: a directory with the file names of DeLVM, ``NAME_img.*`` and ``NAME_label.*``, in any
            image format, whose pairs are sorted by name and whose other files are ignored; or a
            .json list of pairs.
        base: directory that the paths in a .json file are relative to; None: the file's own.

    Raises:
        UserError: nothing is there, there is no pair, or one half of a pair is missing or there
            twice; or the file is not a list of pairs.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"prompt not found: {path} (set prompt=DIR or prompt=FILE.json)")
    if not path.is_dir():
        if path.suffix.lower() == ".json":
            return _pairs_of_json(path, Path(base or path.parent))
        raise UserError(
            f"prompt {path} is neither a directory, a .json list of pairs nor a .jsonl file: "
            "set prompt to one"
        )
    inputs, targets = _files_by_name(path, INPUT), _files_by_name(path, TARGET)
    if not inputs and not targets:
        below = sorted(each.parent.name for each in Path(path).glob("*/*_img.*"))
        hint = f", as {Path(path) / below[0]} has" if below else ""
        raise UserError(f"prompt {path} has no pairs: it needs NAME_img.* and NAME_label.*{hint}")
    for name in sorted(inputs.keys() ^ targets.keys()):
        file, missing = (inputs[name], TARGET) if name in inputs else (targets[name], INPUT)
        raise UserError(f"unpaired {file}: {name}{missing}.* is not in the directory")
    return [PairFiles(inputs[name], targets[name]) for name in sorted(inputs)]


def _files_by_name(folder: Path, ending: str) -> dict[str, Path]:
    """The files whose stem has this ending, by the rest of the stem."""
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stem.endswith(ending) and not path.name.startswith("."):
            name = path.stem.removesuffix(ending)
            if name in files:
                raise UserError(f"two files for one image: {files[name]} and {path.name}")
            files[name] = path
    return files


def _pairs_of_json(path: Path, base: Path) -> list[PairFiles]:
    pairs = []
    for number, entry in enumerate(parse_json(_read_text(path), f"prompt {path}", list)):
        where = f"prompt {path}: pair {number + 1}"
        schema: Any = {"input": str, "target": str} if isinstance(entry, dict) else [str]
        if wrong := schema_error(entry, schema):
            raise UserError(f"{where}: {wrong}")
        names = [entry["input"], entry["target"]] if isinstance(entry, dict) else entry
        if len(names) != 2:
            raise UserError(f"{where} has {len(names)} images: it needs input and target")
        pairs.append(PairFiles(*(_image_path(name, base, where) for name in names)))
    if not pairs:
        raise UserError(f'prompt {path} has no pairs: it needs [["INPUT", "TARGET"], ...]')
    return pairs


def is_jsonl(path: str | Path) -> bool:
    """Whether a prompt is LVM's JSONL, each line of which has its own query, by its suffix."""
    return Path(path).suffix.lower() == ".jsonl" and not Path(path).is_dir()


def read_lines(path: str | Path, base: str | Path | None = None) -> list[PromptLine]:
    """Read a file in LVM's JSONL; empty lines and other keys than LVM's are ignored.

    Args:
        path: the file.
        base: directory that its paths are relative to; None: the file's own.

    Raises:
        UserError: it is missing or too large, or a line is not as described above.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"prompt not found: {path} (set prompt=FILE.jsonl)")
    folder = Path(base or path.parent)
    lines = [
        _parse_line(line, number, path, folder)
        for number, line in enumerate(_read_text(path).split("\n"), 1)
        if line.strip()
    ]
    if not lines:
        raise UserError(f"prompt {path} has no lines: set prompt to a file with examples")
    return lines


@dataclass(frozen=True)
class ImageLists:
    """One line of LVM's JSONL as it is: images that are given, and images that follow.

    Attributes:
        number: of the line, from 1.
        where: file and number of the line, for messages.
        inputs, targets: at least one input.
    """

    number: int
    where: str
    inputs: tuple[Path, ...]
    targets: tuple[Path, ...]


def read_image_lists(path: str | Path, base: str | Path | None = None) -> list[ImageLists]:
    """Read a file in LVM's JSONL whose inputs need not be pairs and a query.

    Args:
        path, base: as of `read_lines`.

    Raises:
        UserError: it is missing or too large, or a line has another form or no input.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"jsonl not found: {path} (set jsonl=FILE)")
    folder, found = Path(base or path.parent), []
    for number, text in enumerate(_read_text(path).split("\n"), 1):
        if text.strip():
            where = f"{path}: line {number}"
            inputs, targets, _ = _image_paths(text, where, folder)
            if not inputs:
                raise UserError(f"{where} has no input")
            found.append(ImageLists(number, where, tuple(inputs), tuple(targets)))
    if not found:
        raise UserError(f"{path} has no lines: set jsonl to a file with examples")
    return found


_LINE = {"input": [str], "target?": [str], "output?": str}


def _parse_line(text: str, number: int, file: Path, folder: Path) -> PromptLine:
    where = f"prompt {file}: line {number}"
    images, targets, output = _image_paths(text, where, folder)
    if len(images) < 3 or len(images) % 2 == 0:
        raise UserError(
            f"{where}: input has {len(images)} images: it needs one or more pairs and then the "
            "query, an odd number of 3 or more"
        )
    pairs = tuple(map(PairFiles, images[:-1:2], images[1::2]))
    return PromptLine(number, where, pairs, images[-1], tuple(targets), output)


def _image_paths(text: str, where: str, folder: Path) -> tuple[list[Path], list[Path], str | None]:
    """The images of a line, "input" and "target", and its "output"."""
    value = parse_json(text, where)
    known = {key: each for key, each in value.items() if key in ("input", "target", "output")}
    if wrong := schema_error(known, _LINE):
        raise UserError(f"{where}: {wrong}")
    inputs, targets = (
        [_image_path(name, folder, where) for name in known.get(key, [])]
        for key in ("input", "target")
    )
    return inputs, targets, known.get("output")


def _image_path(name: str, base: Path, where: str) -> Path:
    """The path of an image that a file names, which must be below a directory."""
    given = PurePath(name)
    if given.is_absolute() or ".." in given.parts or not given.parts:
        raise UserError(
            f"{where}: path {name!r} is not below {base}: write relative paths without '..', and "
            "set prompt_dir=DIR to what they are relative to"
        )
    if max(len(part.encode("utf-8", "surrogatepass")) for part in given.parts) > MAX_NAME_BYTES:
        raise UserError(f"{where}: path {name[:40]!r}... is longer than names of files can be")
    return base / given


def _read_text(path: Path) -> str:
    """The text of a JSON file that is not trusted."""
    if not path.is_file():
        raise UserError(f"prompt {path} is not a file: set prompt to one")
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES:
            raise UserError(
                f"prompt {path} has {size:,} bytes, and the limit is {MAX_JSON_BYTES:,}: split it"
            )
        return path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt {path} cannot be read: {error}") from None


def check_line_images(lines: Sequence[PromptLine]) -> None:
    """Open each image of all lines far enough to see that it is one, before any is answered.

    Raises:
        UserError: one of them is not, or the images of a pair have different shapes.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    for line in lines:
        inputs = (*(image for pair in line.pairs for image in pair), line.query)
        for file in (*inputs, *line.targets[:1]):
            if file not in sizes:
                sizes[file] = stored_size(file, f"{line.where}: {file}")
        for pair in line.pairs:
            first, second = sizes[pair.input], sizes[pair.target]
            if not same_shape(first, second):
                # One of them may be turned by its EXIF tag, which only opening them shows.
                _open_pair(pair)
