"""Ready prompts: a directory of pairs for each task, and a query next to it."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import delvm
from delvm.errors import UserError
from delvm.inference.files.prompt_files import PairFiles, find_pairs
from delvm.serving.limits import Limits, open_pair, open_upload
from delvm.tasks import NAMES


@dataclass(frozen=True)
class PromptSet:
    """A prompt that the page offers.

    Attributes:
        name: of the task, as its directory is called.
        pairs: the files of its examples, sorted by name.
        query: an image to answer.
    """

    name: str
    pairs: tuple[PairFiles, ...]
    query: Path

    @property
    def files(self) -> list[Path]:
        """All of them, the query last."""
        return [*(file for pair in self.pairs for file in pair), self.query]


def shipped_prompts() -> Path:
    """examples/ of the checkout the package is run from, else the copy in the installed package."""
    package = Path(delvm.__file__).resolve().parent
    checkout = package.parent / "examples"
    return checkout if checkout.is_dir() else package / "examples"


def find_prompt_sets(folder: Path) -> list[PromptSet]:
    """The prompts of a directory: each NAME/ next to a NAME_query.* image.

    Tasks of `delvm.tasks.NAMES` come first, in that order, then others by name.
    Directories without such a query are left out.

    Raises:
        UserError: the directory is missing or has no prompts, or one of them has no pairs.
    """
    if not folder.is_dir():
        raise UserError(f"prompts={folder} is not a directory: set prompts=DIR, or prompts=null")
    suffixes = Image.registered_extensions()
    found = []
    for each in filter(Path.is_dir, folder.iterdir()):
        queries = sorted(folder.glob(f"{each.name}_query.*"))
        queries = [file for file in queries if file.suffix.lower() in suffixes]
        if queries:
            found.append(PromptSet(each.name, tuple(find_pairs(each)), queries[0]))
    if not found:
        raise UserError(
            f"prompts={folder} has no prompts: put pairs in {folder}/NAME and a query in "
            f"{folder}/NAME_query.png, or set prompts=null"
        )
    order = {name: number for number, name in enumerate(NAMES)}
    return sorted(found, key=lambda each: (order.get(each.name, len(order)), each.name))


def check_prompt_sets(prompt_sets: Sequence[PromptSet], limits: Limits) -> None:
    """Open all files, as they will be once somebody asks for an answer.

    Raises:
        UserError: one of them exceeds the limits or is not an image of `delvm.serving.limits`, or
            the images of a pair have different shapes.
    """
    for each in prompt_sets:
        for pair in each.pairs:
            open_pair(pair, (f"prompts: {pair.input}", str(pair.target)), limits)
        open_upload(each.query, f"prompts: {each.query}", limits)


def copy_prompt_sets(prompt_sets: Sequence[PromptSet], folder: Path) -> list[PromptSet]:
    """Copies of prompts in a directory that a page may serve files of.

    Raises:
        UserError: a file cannot be read.
    """

    def copy(file: Path, parent: Path) -> Path:
        parent.mkdir(parents=True, exist_ok=True)
        try:
            return Path(shutil.copyfile(file, parent / file.name))
        except OSError as error:
            raise UserError(f"prompts: {file} cannot be read: {error.strerror or error}") from None

    copies = []
    for each in prompt_sets:
        pairs = [
            PairFiles(*(copy(file, folder / each.name) for file in pair)) for pair in each.pairs
        ]
        copies.append(PromptSet(each.name, tuple(pairs), copy(each.query, folder)))
    return copies
