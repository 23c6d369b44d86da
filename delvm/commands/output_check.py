"""Whether an output can be written, found out before the work that it is for."""

import tempfile
from contextlib import suppress
from pathlib import Path

from delvm.errors import UserError
from delvm.storage import RemotePath, as_path


def check_output_dir(path: str, key: str) -> None:
    """Try to write into a directory, which is created for it and left as it was found.

    A URL is not tried, since a store has no directories.

    Args:
        path: of the directory.
        key: of the config, for the message.

    Raises:
        UserError: it cannot be created, or no file can be written into it.
    """
    output = as_path(path)
    if isinstance(output, RemotePath):
        return
    missing = [each for each in (output, *output.parents) if not each.exists()]
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output) as file:
            file.write(b"1")
    except OSError as error:
        raise UserError(
            f"{key}={path} cannot be written: {error.strerror}: {error.filename}: set {key} to "
            "another directory"
        ) from None
    finally:
        for each in missing:
            with suppress(OSError):
                each.rmdir()


def check_output_file(path: str, key: str) -> None:
    """As `check_output_dir`, for the directory of a file.

    Raises:
        UserError: the path is a directory, or cannot be written.
    """
    if Path(path).is_dir():
        raise UserError(f"{key}={path} is a directory: set {key} to a file")
    check_output_dir(str(Path(path).parent), key)
