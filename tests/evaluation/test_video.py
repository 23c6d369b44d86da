"""Continued clips: each frame ahead is scored by itself, between a ceiling and a baseline."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from delvm import tasks
from delvm.data.shards.reader import read_examples
from delvm.data.types import Example
from delvm.errors import UserError
from delvm.evaluation import evaluate_students, evaluate_video, video
from delvm.evaluation.report.video_report import ContinuedClip
from delvm.evaluation.results import video_files
from delvm.evaluation.scores import video_scoring
from delvm.models.perceptual import LPIPS
from delvm.tasks.metrics import psnr
from tests.data.shard_makers import write_examples
from tests.evaluation.conftest import BLOCK, SIDE, BlockTokenizer, Oracle
from tests.models.test_image_losses import weights

CLIPS, FRAMES, GIVEN, AHEAD = 7, 6, 2, 4
vgg = weights  # the fixture


def clip(number: int) -> Example:
    """Blocks of colors that move by a block in each frame."""
    rng = np.random.default_rng(number)
    grid = SIDE // BLOCK
    first = rng.integers(0, 256, (grid, grid, 3)).repeat(BLOCK, 0).repeat(BLOCK, 1)
    frames = [np.roll(first, BLOCK * step, axis=1).astype(np.uint8) for step in range(FRAMES)]
    return Example(f"clip-{number}", "video", tuple(frames))


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("clips")
    options = {"source": "tiny", "seed": 0, "image_size": SIDE}
    write_examples(root, "test", "video", all_clips(), images=FRAMES, **options)
    pairs = [Example(str(i), "derain", clip(i).images[:2]) for i in range(3)]
    write_examples(root, "test", "derain", pairs, **options)
    return root


def all_clips() -> list[Example]:
    return [clip(number) for number in range(CLIPS)]


@pytest.fixture
def oracle(clips: Path, tokenizer: BlockTokenizer) -> Any:
    """A student that knows the frame after each frame."""
    steps = [
        Example("", "video", each.images[i : i + 2])
        for each in read_examples(clips, "test", "video")
        for i in range(FRAMES - 1)
    ]
    return lambda accuracy: Oracle(tokenizer, steps, accuracy)


def evaluate(clips: Path, tokenizer: Any, students: Any, output: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {
        "num_queries": CLIPS, "context_frames": GIVEN, "batch_size": 3, "decoding": "greedy",
    }  # fmt: skip
    return evaluate_video(clips, tokenizer, students, output_dir=output, **options | changes)


def means(intervals: list[Any]) -> list[float]:
    return [each["mean"] for each in intervals]


def test_each_frame_ahead_is_scored_between_ceiling_and_repeated_frame(
    clips: Path, tokenizer: Any, oracle: Any, tmp_path: Path
) -> None:
    students = {"oracle": oracle(1.0), "half": oracle(0.5)}
    found = evaluate(clips, tokenizer, students, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == found
    result = found["tasks"]["video"]
    assert (result["num_frames"], result["metrics"]) == (AHEAD, ["psnr", "ssim"])
    assert result["students"]["oracle"]["scores"] == result["ceiling"]
    half = means(result["students"]["half"]["scores"]["psnr"])
    assert all(a > b for a, b in zip(means(result["ceiling"]["psnr"]), half, strict=True))
    raw = result["baselines"]["repeat_last"]["raw"]["psnr"]
    pixels = torch.stack(
        [torch.from_numpy(np.stack(clip(i).images)).permute(0, 3, 1, 2) / 255 for i in range(CLIPS)]
    )
    for ahead in range(AHEAD):
        expected = psnr(pixels[:, GIVEN - 1], pixels[:, GIVEN + ahead]).mean()
        assert raw[ahead]["mean"] == pytest.approx(float(expected), rel=1e-5)
    gain = result["students"]["oracle"]["gain"]["psnr"]
    after = result["baselines"]["repeat_last"]["round_trip"]["psnr"]
    for ahead in range(AHEAD):
        difference = result["ceiling"]["psnr"][ahead]["mean"] - after[ahead]["mean"]
        assert gain[ahead]["mean"] == pytest.approx(difference)


def test_a_row_per_frame_ahead_and_a_plot(
    clips: Path, tokenizer: Any, oracle: Any, tmp_path: Path
) -> None:
    found = evaluate(clips, tokenizer, {"oracle": oracle(1.0)}, tmp_path, num_frames=3)
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    of_oracle = [r for r in rows if r["method"] == "student/oracle" and r["metric"] == "psnr"]
    assert [row["frame"] for row in of_oracle] == ["1", "2", "3"]
    expected = means(found["tasks"]["video"]["students"]["oracle"]["scores"]["psnr"])
    assert [float(row["mean"]) for row in of_oracle] == expected
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == CLIPS * 3 * 2 * 4  # frames, metrics, methods
    assert {row["key"] for row in rows} == {f"clip-{number}" for number in range(CLIPS)}
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="chart"') == 2 and "PSNR, dB over frames ahead" in page
    assert "LPIPS was not measured" in page and "set vgg_weights=PATH" in page
    assert (tmp_path / "video.png").stat().st_size > 1000
    recorded = json.loads((tmp_path / "results.json").read_text())
    assert recorded["queries"]["video"][0] == {"key": "clip-0"}
    assert recorded["provenance"]["frames_ahead"] == {"video": 3}


def test_a_sequence_with_metrics_of_its_own_is_scored_by_them(
    clips: Path, tokenizer: Any, oracle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And an error among them is one of which less is better."""

    def error(predicted: Any, true: Any) -> float:
        return float(np.abs(true - 1.0 * predicted).mean())

    changed = replace(tasks.get("video"), metric_fns={"error": error}, lower_is_better=("error",))
    monkeypatch.setitem(tasks._TASKS, "video", changed)
    students = {"oracle": oracle(1.0), "half": oracle(0.5)}
    result = evaluate(clips, tokenizer, students, tmp_path)["tasks"]["video"]
    assert result["metrics"] == ["error", "psnr", "ssim"]
    assert result["lower_is_better"] == ["error"]
    half, best = (means(result["students"][each]["scores"]["error"]) for each in ("half", "oracle"))
    assert best == means(result["ceiling"]["error"]) < half
    assert "error over frames ahead" in (tmp_path / "report.html").read_text()


@pytest.mark.slow
def test_lpips_per_frame_with_a_file_of_weights(
    clips: Path, tokenizer: Any, oracle: Any, vgg: Any, tmp_path: Path
) -> None:
    torch.save(vgg[0], tmp_path / "vgg.pth")
    options = {"vgg_weights": str(tmp_path / "vgg.pth"), "num_queries": 2, "num_frames": 2}
    found = evaluate(clips, tokenizer, {"oracle": oracle(1.0)}, tmp_path / "out", **options)
    result = found["tasks"]["video"]
    assert result["metrics"] == ["psnr", "ssim", "lpips"]
    assert result["lower_is_better"] == ["lpips"]
    distance = LPIPS(*vgg)

    def pixels(number: int, frame: int) -> Tensor:
        return torch.from_numpy(clip(number).images[frame]).permute(2, 0, 1)[None] / 255

    raw = result["baselines"]["repeat_last"]["raw"]["lpips"]
    for ahead in range(2):
        each = [distance(pixels(i, GIVEN - 1), pixels(i, GIVEN + ahead)) for i in range(2)]
        assert raw[ahead]["mean"] == pytest.approx(float(sum(each)) / 2, rel=1e-4)
    page = (tmp_path / "out/report.html").read_text()
    assert "LPIPS was not measured" not in page and page.count('class="chart"') == 3


def test_a_killed_evaluation_of_clips_continues(
    clips: Path, tokenizer: Any, oracle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    students = {"half": oracle(0.5)}
    once = evaluate(clips, tokenizer, students, tmp_path / "once")
    calls: list[int] = []
    score = video_scoring.score_clips

    def counted(*clips: Any, **options: Any) -> Any:
        calls.append(options["first"])
        return score(*clips, **options)

    monkeypatch.setattr(video, "score_clips", counted)
    (tmp_path / "once/answers/video/draw0-000003.npz").unlink()
    assert evaluate(clips, tokenizer, students, tmp_path / "once") == once and calls == [3]
    evaluate(clips, tokenizer, students, tmp_path / "once", num_frames=2)
    assert calls == [3, 0, 3, 6]


ERRORS = {
    "tasks=['derain']": "'derain' are not sequences of frames, .* set tasks=.video.",
    "tasks=['vide']": "no task 'vide' in .*did you mean 'video'",
    "context_frames=6": "clips of 'video' have 6 frames: set context_frames=3 num_frames=null",
    "context_frames=3, num_frames=4": "context_frames=3 and num_frames=4, but clips of 'video'",
    "window=9": "student 'a': window=9 and the frame after it are 160 tokens, .* set window=7",
    "context_frames=0": "context_frames=0 is below 1",
    "num_queries=8": "num_queries=8, but test/video holds 7",
    "vgg_weights='none.pth'": "vgg_weights=none.pth not found: set vgg_weights=PATH to a VGG16",
}


@pytest.mark.parametrize("change", ERRORS)
def test_errors_name_the_setting(
    change: str, clips: Path, tokenizer: Any, oracle: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=ERRORS[change]):
        evaluate(clips, tokenizer, {"a": oracle(1.0)}, tmp_path, **eval(f"dict({change})"))
    assert not (tmp_path / "metrics.json").exists()


def test_what_is_left_out_is_listed(
    clips: Path, tokenizer: Any, oracle: Any, tmp_path: Path, capsys: Any
) -> None:
    evaluate(clips, tokenizer, {"a": oracle(1.0)}, tmp_path, num_queries=1, window=1)
    err = capsys.readouterr().err
    assert "left out, since mode=video continues clips: derain" in err
    assert "student 'a' sees the last 1 of context_frames=2 frames" in err


def test_pairs_alone_have_no_clips(shards: Path, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no clips, .* source=video, or set mode=students"):
        evaluate(shards, tokenizer, {}, tmp_path)


def test_clips_next_to_pairs_are_listed_as_left_out(
    clips: Path, tokenizer: Any, oracle: Any, tmp_path: Path, capsys: Any
) -> None:
    pairs = list(read_examples(clips, "test", "derain"))
    options = {"source": "tiny", "seed": 0, "image_size": SIDE}
    for split in ("val", "test"):
        write_examples(tmp_path / "pairs", split, "derain", pairs, **options)
        video_clips = all_clips()
        write_examples(tmp_path / "pairs", split, "video", video_clips, images=FRAMES, **options)
    evaluate_students(
        tmp_path / "pairs", tokenizer, {"a": oracle(1.0)}, output_dir=tmp_path / "out",
        num_queries=1, num_shots=1,
    )  # fmt: skip
    assert "left out, since prompts need pairs: video" in capsys.readouterr().err


def test_loggers_get_a_grid_of_its_own_for_each_student(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    colors = {"a": (255, 0, 0), "b": (0, 0, 255)}
    frames = {name: [Image.new("RGB", (8, 8), color)] for name, color in colors.items()}
    gray = [Image.new("RGB", (8, 8), "gray")]
    shown = ContinuedClip(1, "", gray, gray, frames, {"a": 1.0, "b": 2.0})
    logged: list[Any] = []
    monkeypatch.setattr(video_files, "log_evaluation", lambda *given: logged.extend(given[-1]))
    evaluated = {"video": video_files.EvaluatedVideo({}, [shown], ["clip-0"], [])}
    video_files.log_files([], tmp_path, {"tasks": {}}, evaluated)
    assert [(each.student, each.score) for each in logged] == [("a", 1.0), ("b", 2.0)]
    for each in logged:
        pixels = {color for _, color in each.image.getcolors(1 << 20)}
        assert [name for name in colors if colors[name] in pixels] == [each.student]
