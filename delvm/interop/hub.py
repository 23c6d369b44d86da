"""Weights from the Hugging Face Hub by ``hf://USER/NAME[@REVISION]``: safetensors alone, cached.

Downloads go to huggingface_hub's own cache (``HF_HOME``), under the hash of the commit. Pickles are
not downloaded, and are not read where another program has put them there.
"""

import re
from functools import cache
from pathlib import Path

from delvm.errors import UserError
from delvm.interop.weight_files import shard_names
from delvm.progress import log

PREFIX = "hf://"
PATTERNS = ["*.safetensors", "*.json"]
_WEIGHTS = ("model.safetensors", "diffusion_pytorch_model.safetensors")

_NAME = r"[A-Za-z0-9][\w.-]*"
# A pathlib.Path has made one slash of two.
_ADDRESS = re.compile(rf"hf:/{{1,2}}({_NAME}/{_NAME})(?:@([\w./-]+))?")


def is_hub(path: str | Path) -> bool:
    """Whether a path is an address on the Hub."""
    return str(path).startswith("hf:/")  # as `_ADDRESS` has it


def download(address: str | Path, kind: str) -> Path:
    """The local folder of a repository on the Hub.

    Args:
        address: ``hf://USER/NAME``, and the branch, tag or commit after an ``@``.
        kind: tokenizer or student, for messages and a folder of that name.

    Returns:
        A folder as `delvm.interop.load.resolve` takes it.

    Raises:
        UserError: the address is none, there is no such repository or revision, it cannot be
            reached and is not in the cache, or its weights are not in safetensors.
    """
    match = _ADDRESS.fullmatch(str(address))
    if match is None:
        raise UserError(
            f"{address} is not an address on the Hub: set {kind}=hf://USER/NAME or "
            f"{kind}=hf://USER/NAME@REVISION"
        )
    folder = _snapshot(match[1], match[2], kind)
    _check_weights(folder, kind, f"{PREFIX}{match[1]}@{folder.name}")
    return folder


@cache
def _snapshot(repo: str, revision: str | None, kind: str) -> Path:
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise UserError(
            f"{PREFIX}{repo} needs the package huggingface_hub: pip install 'delvm[hub]'"
        ) from None
    name = f"{PREFIX}{repo}{f'@{revision}' if revision else ''}"
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=PATTERNS))
    except errors.GatedRepoError:
        raise UserError(f"{name} is gated: accept its terms, and run `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{PREFIX}{repo} has no revision {revision}: set {kind}={PREFIX}{repo}@main"
        ) from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{name} was not found on the Hub: check the name or, if it is private, run "
            f"`hf auth login`; or set {kind}=PATH"
        ) from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"{name} cannot be reached and is not in the cache: check the connection, or set "
            f"{kind}=PATH"
        ) from None
    except (errors.HfHubHTTPError, errors.HFValidationError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{name} cannot be downloaded: {reason}: set {kind}=PATH") from None
    pin = f"{PREFIX}{repo}@{folder.name}"
    log(f"{name} is at {pin}" if revision != folder.name else f"{pin} is in the cache")
    return folder


def _check_weights(folder: Path, kind: str, name: str) -> None:
    """Check that what will be read is in safetensors."""
    found = folder if (folder / "config.json").is_file() else folder / kind
    if not (found / "config.json").is_file():
        raise UserError(
            f"{name} holds no {kind}: it has a config.json neither at its root nor in {kind}/: "
            f"set {kind}=PATH"
        )
    indices = [found / f"{each}.index.json" for each in _WEIGHTS]
    indices = [file for file in indices if file.is_file()]
    for file in indices:
        shard_names(file)  # refuses those that name pickles
    if not indices and not any((found / each).is_file() for each in _WEIGHTS):
        raise UserError(
            f"{name} has no weights in safetensors ({' or '.join(_WEIGHTS)}); pickles, which can "
            f"run code, are not downloaded: convert it, or set {kind}=PATH"
        )
