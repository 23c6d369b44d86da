"""Prompts and queries as they lie on a disk."""

from pathlib import Path

from PIL import Image

from delvm.data.image_io import open_image
from delvm.errors import UserError

INPUT, TARGET = "_img", "_label"
Picture = Image.Image


def read_prompt(folder: str | Path) -> list[tuple[Picture, Picture]]:
    """The example pairs of a prompt, in the order of their names.

    The naming is the reference's: ``NAME_img.*`` shows the input and ``NAME_label.*`` the
    target, in any picture format. Other files in the folder are no part of the prompt.

    Raises:
        UserError: the folder is missing or holds no pair, one half of a pair is missing or there
            twice, or a file is not a picture.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"prompt folder not found: {folder} (set prompt=FOLDER)")
    if not folder.is_dir():
        raise UserError(f"prompt {folder} is a file: set prompt to its folder")
    inputs, targets = _named(folder, INPUT), _named(folder, TARGET)
    if not inputs and not targets:
        raise UserError(
            f"prompt folder {folder} has no pairs: it needs NAME_img.* and NAME_label.*"
        )
    for name in sorted(inputs.keys() ^ targets.keys()):
        file, lacks = (inputs[name], TARGET) if name in inputs else (targets[name], INPUT)
        raise UserError(f"unpaired {file}: {name}{lacks}.* is not in the folder")
    return [(open_image(inputs[name]), open_image(targets[name])) for name in sorted(inputs)]


def _named(folder: Path, ending: str) -> dict[str, Path]:
    """Files of a folder whose stem has this ending, by the rest of the stem."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.stem.endswith(ending) and not path.name.startswith("."):
            name = path.stem.removesuffix(ending)
            if name in found:
                raise UserError(f"two files for one picture: {found[name]} and {path.name}")
            found[name] = path
    return found


def find_queries(path: str | Path) -> tuple[list[Path], list[Path]]:
    """The pictures to be answered: one file, or those of a folder, in the order of their names.

    Returns:
        the pictures, and the other files of the folder, which are no pictures by their suffix.

    Raises:
        UserError: nothing is there, or the folder has no picture.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"query not found: {path} (set query=PICTURE or query=FOLDER)")
    if not path.is_dir():
        return [path], []
    known = Image.registered_extensions()
    files = [file for file in sorted(path.iterdir()) if file.is_file() and file.name[0] != "."]
    pictures = [file for file in files if file.suffix.lower() in known]
    if not pictures:
        raise UserError(f"query folder {path} has no pictures")
    return pictures, [file for file in files if file not in pictures]
