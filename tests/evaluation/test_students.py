"""A complete evaluation with fake models: metrics, files, errors."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delvm.data.shards.reader import read_examples
from delvm.data.types import Example
from delvm.errors import UserError
from delvm.evaluation import evaluate_students, evaluate_tokenizer
from delvm.evaluation.results import metrics
from delvm.evaluation.scores import scoring
from tests.data.shard_makers import write_examples

TASKS = ("segmentation", "derain", "edges")
Students = dict[str, Any]


@pytest.fixture
def evaluated(shards: Path, tokenizer: Any, students: Students, tmp_path: Path) -> dict:
    return evaluate_students(
        shards, tokenizer, students, output_dir=tmp_path, num_queries=12, batch_size=5
    )


@pytest.mark.slow
def test_written_files_and_metrics_keys(evaluated: dict, tmp_path: Path) -> None:
    assert json.loads((tmp_path / "metrics.json").read_text()) == evaluated
    assert evaluated.keys() == {"title", "settings", "tokenizer", "students", "tasks"}
    assert list(evaluated["tasks"]) == list(TASKS)
    assert [task["trained"] for task in evaluated["tasks"].values()] == [True, True, False]
    derain = evaluated["tasks"]["derain"]
    assert derain["metrics"] == ["psnr_y", "ssim_y", "psnr", "ssim"]
    assert derain["baselines"].keys() == {"copy_query", "nearest_target", "mean_target"}
    assert derain["students"]["oracle"].keys() == {"scores", "gain", "gap_closed", "loss"}
    assert evaluated["students"]["oracle"]["origin"] == "origin not stated"
    for task in TASKS:
        assert (tmp_path / f"{task}.png").stat().st_size > 1000
    assert "oracle" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.slow
def test_oracle_reaches_ceiling(evaluated: dict) -> None:
    for task in evaluated["tasks"].values():
        oracle = task["students"]["oracle"]
        assert oracle["scores"] == task["ceiling"]
        assert oracle["gap_closed"]["mean"] == pytest.approx(1.0)
        assert oracle["loss"]["answer"]["accuracy"]["mean"] == 1.0
        assert oracle["loss"]["all"]["accuracy"]["mean"] < 1.0
    assert evaluated["students"]["oracle"]["summary"] == {
        "trained_tasks": 2,
        "beat_baseline": 2,
        "clearly_beat": 2,
        "half_gap_closed": 2,
    }


@pytest.mark.slow
def test_gap_closed_is_computed_from_the_reported_means(evaluated: dict) -> None:
    for task in evaluated["tasks"].values():
        metric, best = task["primary_metric"], task["best_baseline"]
        passed = {n: forms["round_trip"][metric]["mean"] for n, forms in task["baselines"].items()}
        assert passed[best] == max(passed.values())
        answer = task["students"]["half"]["scores"][metric]["mean"]
        ceiling = task["ceiling"][metric]["mean"]
        expected = (answer - passed[best]) / (ceiling - passed[best])
        assert task["students"]["half"]["gap_closed"]["mean"] == pytest.approx(expected)
        assert task["students"]["half"]["gain"]["mean"] == pytest.approx(answer - passed[best])


@pytest.mark.slow
def test_scores_csv_matches_metrics(evaluated: dict, tmp_path: Path) -> None:
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == metrics.COLUMNS
    found = {
        (row["task"], row["method"], row["metric"]): float(row["mean"] or "nan") for row in rows
    }
    assert len(found) == len(rows)
    derain = evaluated["tasks"]["derain"]
    expected = derain["baselines"]["copy_query"]["raw"]["psnr"]["mean"]
    assert found["derain", "baseline/copy_query/raw", "psnr"] == pytest.approx(expected)
    loss = derain["students"]["half"]["loss"]["all"]["perplexity"]["mean"]
    assert found["derain", "student/half", "perplexity_all"] == pytest.approx(loss)


@pytest.mark.slow
def test_batch_size_does_not_change_scores(
    shards: Path, tokenizer: Any, students: Students, evaluated: dict, tmp_path: Path
) -> None:
    again = evaluate_students(
        shards,
        tokenizer,
        students,
        output_dir=tmp_path / "again",
        tasks=["derain", "derain"],
        num_queries=12,
        batch_size=12,
    )
    first, second = (x["tasks"]["derain"]["students"]["half"] for x in (evaluated, again))
    assert list(again["tasks"]) == ["derain"]
    assert first["scores"]["psnr"] == pytest.approx(second["scores"]["psnr"])


def test_report_shows_the_first_queries(
    shards: Path,
    tokenizer: Any,
    students: Students,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scoring, "NUM_VISUAL_EXAMPLES", 3)
    options: dict[str, Any] = {"tasks": ["derain"], "num_queries": 4, "batch_size": 2}
    evaluate_students(shards, tokenizer, students, output_dir=tmp_path, **options)
    page = (tmp_path / "report.html").read_text()
    assert len(re.findall(r'<p class="quiet">query \d', page)) == page.count('class="example"')
    first = re.findall(r'<p class="quiet">query (\d)', page)[:3]
    assert first == ["1", "2", "3"]
    assert 'alt="derain, query 3: answer of half"' in page


def test_settings_are_repeated_under_flat_keys(evaluated: dict) -> None:
    assert (
        evaluated["settings"].items()
        >= {
            "num_shots": 3,
            "num_prompts": 1,
            "shared_prompt": False,
            "seed": 0,
            "decoding": "mean_embedding",
            "temperature": 0.0,
            "top_k": None,
            "top_p": None,
            "guidance": 1.0,
        }.items()
    )
    assert "sampling" not in evaluated["settings"]


def test_report_names_votes_and_guidance(
    shards: Path, tokenizer: Any, students: Students, tmp_path: Path
) -> None:
    evaluate_students(
        shards, tokenizer, students, output_dir=tmp_path, num_queries=2, num_prompts=2,
        shared_prompt=True, guidance=1.5,
    )  # fmt: skip
    page = " ".join((tmp_path / "report.html").read_text().split())
    assert "by the vote of 2 prompts of 3 example pairs, the same for all queries of a" in page
    assert "with guidance 1.5" in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ["derian"]}, "did you mean 'derain'"),
        ({"num_queries": 13}, "set num_queries=12"),
        ({"num_queries": 0}, "num_queries=0 is below 1"),
        ({"num_shots": 9}, "set num_shots=8"),
        ({"num_shots": 4}, "context of student 'oracle' is 128: set num_shots=3"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_prompts": 0}, "num_prompts=0 is below 1"),
        ({"guidance": -1.0}, "guidance=-1.0 is below 0"),
        ({"students": {}}, "set students.NAME=PATH"),
        ({"input_dir": Path("nowhere")}, "delvm prepare"),
        ({"settings": {"resolution": 32}}, "16 px.*resolution 32"),
        ({"settings": {"levels": 3}}, "27 .*216"),
        ({"decoding": "sample"}, "decoding=sample needs a temperature above 0"),
        ({"histories": {"oracle": Path("none.csv")}}, "none.csv"),
    ],
)
def test_invalid_request_is_refused_before_any_file(
    shards: Path,
    tokenizer: Any,
    students: Students,
    tmp_path: Path,
    make_tokenizer: Callable[..., Any],
    changes: dict,
    words: str,
) -> None:
    if "settings" in changes:
        changes = {"tokenizer": make_tokenizer(**changes["settings"])}
    arguments = {
        "input_dir": shards,
        "tokenizer": tokenizer,
        "students": students,
        "output_dir": tmp_path / "out",
        "num_queries": 12,
    } | changes
    with pytest.raises(UserError, match=words):
        evaluate_students(**arguments)
    assert not (tmp_path / "out").exists()


def test_single_images_are_skipped_unless_named(
    shards: Path, tokenizer: Any, students: Students, tmp_path: Path
) -> None:
    root = tmp_path / "mixed"
    shutil.copytree(shards, root)
    for split in ("val", "test"):
        gray = np.full((16, 16, 3), 99, np.uint8)
        alone = [Example(f"{i}", "images", (gray,)) for i in range(12)]
        write_examples(root, split, "images", alone, source="tiny", seed=0, image_size=16)
    output = tmp_path / "out"
    with pytest.raises(UserError, match="'images' has examples of 1 images"):
        evaluate_students(
            root, tokenizer, students, output_dir=output, tasks=["images"], num_queries=12
        )
    report = evaluate_students(root, tokenizer, students, output_dir=output, num_queries=12)
    assert set(report["tasks"]) == set(TASKS)
    output = tmp_path / "reconstruction"
    report = evaluate_tokenizer(root, tokenizer, output_dir=output, num_queries=12)
    assert list(report["tasks"]["images"]) == ["image 1"]
    assert report["all"]["psnr"]["n"] == 12 * (2 * len(TASKS) + 1)


def test_student_of_another_tokenizer_is_refused(
    shards: Path, tokenizer: Any, students: Students, tmp_path: Path
) -> None:
    students["oracle"].tokenizer_fingerprint = "0123456789abcdef"
    with pytest.raises(UserError, match=r"'oracle'.*0123456789abcdef.*set tokenizer=PATH"):
        evaluate_students(shards, tokenizer, students, output_dir=tmp_path, num_queries=2)


def test_images_made_square_in_another_way_are_reported(
    tokenizer: Any,
    students: Students,
    shards: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split in ("val", "test"):
        pairs = list(read_examples(shards, split, "edges"))
        plan: dict[str, Any] = {
            "source": "paired",
            "seed": 0,
            "image_size": 16,
            "settings": {"resize": "pad"},
        }
        write_examples(tmp_path / "shards", split, "edges", pairs, **plan)
    students["oracle"].resize = "squash"
    request: dict[str, Any] = {"output_dir": tmp_path / "out", "num_queries": 2}
    evaluate_students(tmp_path / "shards", tokenizer, students, **request)
    assert "'oracle' was trained on images of resize=squash" in capsys.readouterr().err
    students["oracle"].resize = "pad"
    evaluate_students(tmp_path / "shards", tokenizer, students, **request)
    assert "resize" not in capsys.readouterr().err


@pytest.mark.slow
def test_metrics_of_an_earlier_version_are_read(evaluated: dict, tmp_path: Path) -> None:
    """Old names, as an earlier version wrote them."""
    old = json.loads(json.dumps(evaluated))
    settings = old["settings"]
    settings["queries"], settings["pairs"] = settings.pop("num_queries"), settings.pop("num_shots")
    settings["input"] = settings.pop("input_dir")
    for added in ("num_prompts", "shared_prompt", "guidance"):
        del settings[added]
    settings["vocab_size"] = settings.pop("codebook_size")
    for task in old["tasks"].values():
        task["primary"], task["pool"] = task.pop("primary_metric"), task.pop("pool_size")
        task["queries"] = task.pop("num_queries")
        for student in task["students"].values():
            student["closed"] = student.pop("gap_closed")
    for student in old["students"].values():
        student["standing"] = student.pop("summary")
        student["standing"]["closed_half"] = student["standing"].pop("half_gap_closed")
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert metrics.read_metrics(tmp_path / "old.json") == evaluated
    assert metrics.read_metrics(tmp_path / "metrics.json") == evaluated
