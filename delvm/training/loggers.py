"""What any list of Lightning loggers needs at a run's start, for its images, and at its end."""

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from delvm.interop.load import read_metadata

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
