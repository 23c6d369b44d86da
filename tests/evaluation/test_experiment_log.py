"""Evaluations in wandb: a table of scores, and the answers that the report shows."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger

from delvm.commands import evaluate
from delvm.commands.app import compose
from delvm.data.shards.reader import read_examples
from delvm.data.types import Example
from delvm.errors import UserError
from delvm.evaluation import evaluate_students, evaluate_video
from delvm.training.loggers import finish_loggers, start_wandb
from tests.data.shard_makers import write_examples
from tests.evaluation.conftest import SIDE, Oracle


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nobody is logged in, and what Lightning sets does not reach other tests."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.pop("WANDB_MODE", None)


@pytest.fixture
def logger(tmp_path: Path) -> Iterator[WandbLogger]:
    found = WandbLogger(save_dir=tmp_path, offline=True)
    start_wandb([found], tmp_path, resumes=False)
    yield found
    finish_loggers([found], failed=False)


def table(folder: Path, name: str) -> dict[str, Any]:
    (file,) = folder.glob(f"wandb/offline-run-*/files/media/table/{name}_*.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def values(folder: Path, method: str) -> list[float]:
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [float(r["value"]) for r in rows if (r["method"], r["metric"]) == (method, "psnr")]


@pytest.mark.slow
def test_a_table_of_scores_and_the_shown_answers(
    shards: Path, tokenizer: Any, students: Any, logger: WandbLogger, tmp_path: Path
) -> None:
    found = evaluate_students(
        shards, tokenizer, students, output_dir=tmp_path / "out", num_queries=12,
        tasks=["derain"], loggers=[logger],
    )  # fmt: skip
    scores = table(tmp_path, "scores")
    with (tmp_path / "out/scores.csv").open() as file:
        header, *rows = csv.reader(file)
    assert scores["columns"] == header and len(scores["data"]) == len(rows)
    assert [str(row[0]) for row in scores["data"]] == [row[0] for row in rows]
    means = {tuple(row[:3]): row[3] for row in scores["data"]}
    half = found["tasks"]["derain"]["students"]["half"]["scores"]["psnr"]["mean"]
    assert means["derain", "student/half", "psnr"] == pytest.approx(half)
    shown = logger.experiment.summary["answers/derain"]
    captions = shown["captions"]
    lowest = min(row for row in values(tmp_path / "out", "student/half"))
    assert any(
        f", half: psnr {lowest:.4g} (" in caption and "worst answer of half" in caption
        for caption in captions
    )
    for kind in ("median", "best"):
        assert any(f"{kind} answer of oracle" in caption for caption in captions)
    images = list(tmp_path.glob("wandb/offline-run-*/files/media/images/answers/derain_*.png"))
    assert len(images) == len(captions) and all(each.stat().st_size > 100 for each in images)
    assert logger.experiment.summary["derain/half/psnr"] == pytest.approx(half)


@pytest.mark.slow
def test_continued_clips_are_logged(tokenizer: Any, logger: WandbLogger, tmp_path: Path) -> None:
    from tests.evaluation.test_video import FRAMES, all_clips

    write_examples(
        tmp_path / "clips", "test", "video", all_clips(), images=FRAMES, source="tiny", seed=0,
        image_size=SIDE,
    )  # fmt: skip
    clips = read_examples(tmp_path / "clips", "test", "video")
    steps = [Example("", "video", each.images[i : i + 2]) for each in clips for i in range(5)]
    students: Any = {"a": Oracle(tokenizer, steps, 1.0)}
    found = evaluate_video(
        tmp_path / "clips", tokenizer, students, num_frames=2,
        output_dir=tmp_path / "out", num_queries=3, loggers=[logger],
    )  # fmt: skip
    first = found["tasks"]["video"]["students"]["a"]["scores"]["psnr"][0]["mean"]
    assert logger.experiment.summary["video/a/psnr_frame1"] == pytest.approx(first)
    assert table(tmp_path, "scores")["columns"][2] == "frame"
    assert len(logger.experiment.summary["answers/video"]["captions"]) == 3


@pytest.mark.slow
def test_the_command_starts_and_finishes_its_loggers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cfg = compose("evaluate", ["logger=wandb", f"output_dir={tmp_path}", "logger.wandb.name=mine"])
    seen: list[Any] = []
    monkeypatch.setattr(evaluate, "_students", lambda cfg, loggers: seen.extend(loggers))
    evaluate.run(cfg)
    (logger,) = seen
    assert isinstance(logger, WandbLogger) and logger._name == "mine"
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    seen.clear()
    evaluate.run(cfg)
    assert not seen and len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_other_modes_have_no_loggers() -> None:
    cfg = compose("evaluate", ["logger=wandb", "mode=tokenizer", "input_dir=."])
    assert cfg.validate() == ["mode=tokenizer does not use logger=wandb: set logger=null"]
    with pytest.raises(UserError, match="projekt': did you mean 'logger.wandb.project'"):
        compose("evaluate", ["logger=wandb", "logger.wandb.projekt=x"])
