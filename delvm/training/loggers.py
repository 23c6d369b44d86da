"""What any list of Lightning loggers needs at a run's start, for its images, and at its end."""

import csv
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from delvm.errors import UserError
from delvm.interop.load import read_metadata
from delvm.storage import atomic_path, read_json, write_json

WANDB_IDS = "wandb_ids.json"
CSV_NAME = "metrics.csv"  # Lightning's CSVLogger has it as a private constant


def history_until(checkpoint: str, csv_path: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv before the step of a checkpoint; later steps will be repeated."""
    if not csv_path.exists():
        return []
    last = read_metadata(Path(checkpoint))["global_step"]
    with csv_path.open(newline="", encoding="utf-8") as lines:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]
    return [row for row in rows if row["step"] < last]


@rank_zero_only
def restore_csv(loggers: Iterable[Logger], checkpoint: str) -> None:
    """Log again, in each CSVLogger, what it had logged before the checkpoint that is resumed.

    Lightning's CSVLogger deletes the file of an earlier job. Only rank zero reads it, since it is
    the rank that deletes it.
    """
    for logger in loggers:
        if not isinstance(logger, CSVLogger):
            continue
        # Read first: asked for its experiment, the logger deletes the file.
        if rows := history_until(checkpoint, Path(logger.log_dir) / CSV_NAME):
            logger.experiment.metrics.extend(rows)
            logger.save()


def start_wandb(loggers: Iterable[Logger], output_dir: Path, resumes: bool) -> None:
    """Start the runs of wandb, in their own if they are resumed, before the first step.

    Their ids are kept in ``output_dir``, so that a resumed run continues its charts.
    ``WANDB_MODE=disabled`` holds also where the config asks for files (``offline``).

    Args:
        loggers: of any kind; others than wandb's are left alone.
        output_dir: of the run.
        resumes: whether it continues one.

    Raises:
        UserError: wandb cannot be reached, or nobody is logged in.
    """
    found = [each for each in loggers if isinstance(each, WandbLogger)]
    if not found:
        return
    if os.environ.get("WANDB_MODE") == "disabled":
        for logger in found:
            logger._offline = False  # which would set the variable to dryrun
            logger._wandb_init["mode"] = "disabled"  # wandb reads the variable once per process
    else:
        _start_wandb(found, output_dir / WANDB_IDS, resumes)


@rank_zero_only
def _start_wandb(loggers: list[WandbLogger], file: Path, resumes: bool) -> None:
    from wandb.errors import Error

    known = read_json(file, "ids of wandb").get("ids", []) if resumes and file.exists() else []
    ids = [each if isinstance(each, str) else None for each in known] if type(known) is list else []
    for logger, run_id in zip(loggers, [*ids, *[None] * len(loggers)], strict=False):
        if run_id is not None and logger._id is None:  # an id of the config goes first
            logger._wandb_init["id"] = logger._id = run_id
        if logger._wandb_init.get("anonymous") is None:  # of which newer versions of wandb warn
            logger._wandb_init.pop("anonymous", None)
        try:
            _ = logger.experiment
        except Error as error:
            reason = " ".join(str(error).split()).rstrip(".")
            raise UserError(
                f"wandb: {reason}: run `wandb login`, set WANDB_API_KEY, or set "
                "logger.wandb.offline=true"
            ) from None
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(file) as tmp:
        write_json(tmp, {"ids": [str(each.experiment.id) for each in loggers]})


def finish_loggers(loggers: Iterable[Logger], failed: bool) -> None:
    """Finish a wandb run, into which the next run in this process would otherwise write."""
    for logger in loggers:
        # Asked for its experiment, a logger that has none yet would start it.
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger._experiment.finish(exit_code=int(failed))


def log_image(logger: Logger, name: str, image: Image.Image, step: int) -> None:
    """Log an image, to a logger that takes images: TensorBoard and wandb."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(image), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [image], step)
