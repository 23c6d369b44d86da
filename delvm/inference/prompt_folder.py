"""Read prompts and queries from folders of images."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from delvm.data.image_io import aligned, open_image, open_stored
from delvm.data.resizing import same_shape
from delvm.errors import UserError

INPUT, TARGET = "_img", "_label"


def read_prompt(folder: str | Path) -> list[tuple[Image.Image, Image.Image]]:
    """Read the example pairs of a prompt, sorted by name.

    The file names are DeLVM's: ``NAME_img.*`` is the input and ``NAME_label.*`` the target, in any
    image format. Other files in the folder are ignored.

    Raises:
        UserError: the folder is missing or has no pair, one half of a pair is missing or there
            twice or of another shape, or a file cannot be read as an image.
    """
    folder = Path(folder)
    if not folder.exists():
        raise UserError(f"prompt folder not found: {folder} (set prompt=FOLDER)")
    if not folder.is_dir():
        raise UserError(f"prompt {folder} is a file: set prompt to its folder")
    inputs, targets = _files_by_name(folder, INPUT), _files_by_name(folder, TARGET)
    if not inputs and not targets:
        raise UserError(
            f"prompt folder {folder} has no pairs: it needs NAME_img.* and NAME_label.*"
        )
    for name in sorted(inputs.keys() ^ targets.keys()):
        file, missing = (inputs[name], TARGET) if name in inputs else (targets[name], INPUT)
        raise UserError(f"unpaired {file}: {name}{missing}.* is not in the folder")
    pairs = [
        aligned(open_stored(inputs[name]), open_stored(targets[name])) for name in sorted(inputs)
    ]
    for name, (first, second) in zip(sorted(inputs), pairs, strict=True):
        if not same_shape(first.size, second.size):
            raise UserError(
                f"{inputs[name]} has {first.width} x {first.height} pixels and "
                f"{targets[name].name} {second.width} x {second.height}: crop them to one shape"
            )
    return pairs


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


def find_queries(path: str | Path) -> tuple[list[Path], list[Path]]:
    """Find the query images: one file, or all images of a folder sorted by name.

    Returns:
        the images, and the folder's other files, whose suffix is not that of an image format.

    Raises:
        UserError: the path does not exist, or the folder has no image.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"query not found: {path} (set query=IMAGE or query=FOLDER)")
    if not path.is_dir():
        return [path], []
    suffixes = Image.registered_extensions()
    files = [file for file in sorted(path.iterdir()) if file.is_file() and file.name[0] != "."]
    images = [file for file in files if file.suffix.lower() in suffixes]
    if not images:
        raise UserError(f"query folder {path} has no images")
    return images, [file for file in files if file not in images]


def check_queries(files: Sequence[Path]) -> None:
    """Open each query far enough to see that it is an image, before any is answered.

    Raises:
        UserError: one of them is not.
    """
    for file in files:
        try:
            Image.open(file).close()
        except (OSError, ValueError, Image.DecompressionBombError):
            open_image(file)  # raises the reason
