"""Where the figures and pictures of a run go: always to files, and to others if asked."""

import csv
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from delvm.interop.load import read_metadata
from delvm.training.config import LoggerConfig, LoggerName

CSV_NAME = "metrics.csv"


def build_loggers(config: LoggerConfig, folder: Path, resume: str | None) -> list[Logger]:
    """The loggers of a run.

    Args:
        config: which one beside the CSV file.
        folder: of the run.
        resume: checkpoint that the run goes on from; what was logged before it is kept.
    """
    table = CSVLogger(folder, name="", version="")
    if resume:
        restore_csv(table, resume, folder / CSV_NAME)
    made: list[Logger] = [table]
    if config.name is not LoggerName.csv:
        made.append(TensorBoardLogger(folder, name="", version="tensorboard"))
    if config.name is LoggerName.wandb:
        made.append(WandbLogger(project=config.project, offline=config.offline, save_dir=folder))
    return made


def finish_loggers(made: list[Logger], failed: bool) -> None:
    """End what outlives a run: the next one in this process would write into it."""
    for logger in made:
        # Asked for its experiment, one that has none yet would begin it.
        if isinstance(logger, WandbLogger) and logger._experiment is not None:
            logger._experiment.finish(exit_code=int(failed))


def history_until(checkpoint: str, file: Path) -> list[dict[str, float]]:
    """Rows of a metrics.csv up to the step of a checkpoint: what was logged after it is redone."""
    if not file.exists():
        return []
    last = read_metadata(Path(checkpoint))["global_step"]
    with file.open(newline="", encoding="utf-8") as lines:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]
    return [row for row in rows if row["step"] < last]


@rank_zero_only
def restore_csv(table: CSVLogger, resume: str, file: Path) -> None:
    """Log rows anew: Lightning deletes the file that an earlier job left.

    The first process alone reads the file, since it is the one that deletes it.
    """
    if rows := history_until(resume, file):
        table.experiment.metrics.extend(rows)
        table.save()


def log_image(logger: Logger, name: str, picture: Image.Image, step: int) -> None:
    """Hand a picture to a logger that shows pictures; the others are left alone."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, np.asarray(picture), step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [picture], step)
