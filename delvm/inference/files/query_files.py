"""Find the images to answer: one file, those of a directory, or those that a pattern matches."""

import glob
from collections.abc import Iterable
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from delvm.data.image_io import stored_size
from delvm.errors import UserError


class QueryFiles(NamedTuple):
    """The images to answer.

    Attributes:
        images: sorted by path.
        others: files at the same paths whose suffix is not that of an image format.
        root: the directory that all images are in or below.
    """

    images: list[Path]
    others: list[Path]
    root: Path


def find_queries(query: str | Path, exclude: Path | None = None, key: str = "query") -> QueryFiles:
    """Find the images to answer. Hidden files are ignored.

    Args:
        query: an image; a directory of images; or a pattern such as ``photos/**/*.jpg``, in which
            ``**`` also matches directories of any depth. What exists by that very name is not read
            as a pattern.
        exclude: directory whose images a pattern does not match: the one that answers go to.
        key: of the config, for messages.

    Raises:
        UserError: nothing is there, or no images.
    """
    path = Path(query)
    if path.is_dir():
        files = [file for file in path.iterdir() if file.is_file() and file.name[0] != "."]
        return _select(files, path, f"{key} directory {path} has no images: set {key} to another")
    if path.exists():
        return QueryFiles([path], [], path.parent)
    if not glob.has_magic(str(query)):
        raise UserError(
            f"{key} not found: {path} (set {key}=IMAGE, {key}=DIR or {key}='DIR/**/*.png')"
        )
    matches = {Path(found) for found in glob.iglob(str(query), recursive=True)}
    files = [file for file in matches if file.is_file()]
    outside = [file for file in files if exclude is None or not _is_below(file, exclude)]
    none = f"{key} {query} matches no images"
    if len(outside) < len(files):
        none += f" but {len(files) - len(outside)} in output {exclude}"
    literal = takewhile(lambda part: not glob.has_magic(part), path.parts[:-1])
    return _select(outside, Path(*literal), f"{none}: set {key} to another pattern")


def _is_below(file: Path, folder: Path) -> bool:
    return file.resolve().is_relative_to(folder.resolve())


def _select(files: list[Path], root: Path, none: str) -> QueryFiles:
    """Part the images from other files by their suffixes; raise a UserError if there is none."""
    suffixes = Image.registered_extensions()
    images = [file for file in sorted(files) if file.suffix.lower() in suffixes]
    if not images:
        raise UserError(none)
    others = [file for file in sorted(files) if file.suffix.lower() not in suffixes]
    return QueryFiles(images, others, root)


def check_queries(files: Iterable[Path]) -> None:
    """Open each query far enough to see that it is an image, before any is answered.

    Raises:
        UserError: one of them is not.
    """
    for file in files:
        stored_size(file)
