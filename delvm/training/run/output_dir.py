"""The directory of a run: one run at a time, and nothing is removed that is not its own.

OUTPUT_DIR/.lock                   held by the running process
OUTPUT_DIR/.hydra/                 its config
OUTPUT_DIR/checkpoints/            see `delvm.training.callbacks.checkpoint`
OUTPUT_DIR/metrics.csv             metrics, where the CSVLogger is used
OUTPUT_DIR/skipped.jsonl           steps that were skipped
OUTPUT_DIR/rejected_shards.jsonl   shards and images that could not be read, of streams
OUTPUT_DIR/student or tokenizer/   the exported weights
"""

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from lightning.pytorch.utilities import rank_zero_only

from delvm.errors import UserError
from delvm.interop.save import FORMAT
from delvm.models.transformer import Transformer
from delvm.models.vqgan import VQGAN
from delvm.storage import read_json, remove
from delvm.training.callbacks.checkpoint import list_checkpoints
from delvm.training.strategies import network_class

logger = logging.getLogger("delvm.training")

# What an exported directory holds; anything else in it is somebody's own.
_EXPORTED = {"config.json", "model.safetensors"}


@contextmanager
def lock_output_dir(output_dir: Path) -> Iterator[None]:
    """Hold a run's directory, so that a second run is not written into it.

    The kernel releases the lock when the process ends, however it ends. Of several processes of
    one run the first holds it.

    Raises:
        UserError: another process holds it; the message names its id and host.
    """
    if getattr(rank_zero_only, "rank", 0):
        yield
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / ".lock"
    with _open_locked(path) as file:
        file.seek(0)
        file.truncate()
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _open_locked(path: Path) -> IO[str]:
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            # Not flock: children that data loading forks would hold it after this process.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            file.seek(0)
            holder = file.read().strip() or "another process"
            file.close()
            raise UserError(
                f"output_dir={path.parent} is in use by {holder}: wait for it, stop it, or set "
                "output_dir=PATH"
            ) from None
        except OSError as error:  # a file system without locks
            logger.warning("%s cannot be locked (%s)", path.parent, error.strerror)
            return file
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            return file
        file.close()  # its holder has removed it since it was opened


def export_path(output_dir: Path, model: Any) -> Path | None:
    """Where a run exports its network to; None of a class that has no format of ours.

    One of another class, a subclass of ours included, has no config of ours that would rebuild it:
    its weights stay in the checkpoints.
    """
    kind = network_class(model)
    if kind not in (VQGAN, Transformer):
        return None
    return output_dir / ("tokenizer" if kind is VQGAN else "student")


def check_run_dir(output_dir: Path, model: Any, replaces: bool) -> None:
    """Refuse to start a run that would replace what is not its own.

    Args:
        output_dir: of the run.
        model: the network that is exported at its end.
        replaces: whether the run may replace the weights of an earlier one: it resumes it, or has
            ``overwrite=true``.

    Raises:
        UserError: names what stands there.
    """
    path = export_path(output_dir, model)
    if path is not None and path.exists() and not (replaces and _is_export(path)):
        hint = "overwrite=true to replace it, or " if _is_export(path) else ""
        what = "weights already" if hint else "files that are not exported weights"
        raise UserError(
            f"{path} holds {what}, and this run would export its weights there: set "
            f"{hint}output_dir=PATH"
        )
    csv = output_dir / "metrics.csv"
    if csv.exists() and not _is_metrics(csv):
        raise UserError(f"{csv} is not the metrics of a run: set output_dir=PATH")


def remove_earlier_run(output_dir: Path) -> None:
    """Remove the checkpoints of a run that this one replaces (``overwrite=true``).

    Files that are not checkpoints of ours stay.
    """
    folder = output_dir / "checkpoints"
    leftovers = [*folder.glob(".step=*.ckpt.part"), *folder.glob(".*.ckpt.part")]
    links = [path for name in ("last", "best") if (path := folder / f"{name}.ckpt").is_symlink()]
    for path in [*links, *list_checkpoints(output_dir), *leftovers]:
        remove(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    for name in ("skipped.jsonl", "rejected_shards.jsonl"):
        (output_dir / name).unlink(missing_ok=True)


def _is_export(path: Path) -> bool:
    """Whether a directory holds a model in DeLVM's own format and nothing else."""
    if not path.is_dir() or path.is_symlink():
        return False
    if not any(path.iterdir()):
        return True
    if not {each.name for each in path.iterdir()} <= _EXPORTED:
        return False
    try:
        return read_json(path / "config.json", "model config").get("format") == FORMAT
    except UserError:
        return False


def _is_metrics(path: Path) -> bool:
    """Whether a CSV file has the columns that Lightning's CSVLogger writes."""
    with path.open(encoding="utf-8", errors="replace") as file:
        columns = file.readline().strip().split(",")
    return columns == [""] or "step" in columns
