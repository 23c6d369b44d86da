"""A whole evaluation on fakes: numbers, files, refusals."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delvm.data.types import Example
from delvm.errors import UserError
from delvm.evaluation import reconstruction, results
from delvm.evaluation import scoring as measure
from delvm.evaluation.students import run
from tests.data.shard_makers import write_examples

TASKS = ("segmentation", "derain", "edges")
Students = dict[str, Any]


@pytest.fixture
def evaluated(shards: Path, tokenizer: Any, students: Students, tmp_path: Path) -> dict:
    return run(shards, tokenizer, students, output=tmp_path, queries=12, batch_size=5)


def test_files_and_keys(evaluated: dict, tmp_path: Path) -> None:
    assert json.loads((tmp_path / "metrics.json").read_text()) == evaluated
    assert evaluated.keys() == {"title", "settings", "tokenizer", "students", "tasks"}
    assert list(evaluated["tasks"]) == list(TASKS)
    assert [task["trained"] for task in evaluated["tasks"].values()] == [True, True, False]
    derain = evaluated["tasks"]["derain"]
    assert derain["metrics"] == ["psnr", "ssim"]
    assert derain["baselines"].keys() == {"copy_query", "nearest_target", "mean_target"}
    assert derain["students"]["sage"].keys() == {"scores", "gain", "closed", "loss"}
    assert evaluated["students"]["sage"]["origin"] == "origin not stated"
    for task in TASKS:
        assert (tmp_path / f"{task}.png").stat().st_size > 1000
    assert "sage" in (tmp_path / "report.html").read_text()
    assert not list(tmp_path.glob(".*"))


def test_one_who_knows_the_truth_reaches_the_ceiling(evaluated: dict) -> None:
    for task in evaluated["tasks"].values():
        sage = task["students"]["sage"]
        assert sage["scores"] == task["ceiling"]
        assert sage["closed"]["mean"] == pytest.approx(1.0)
        assert sage["loss"]["answer"]["accuracy"]["mean"] == 1.0
        assert sage["loss"]["all"]["accuracy"]["mean"] < 1.0
    assert evaluated["students"]["sage"]["standing"] == {
        "trained_tasks": 2,
        "beat_baseline": 2,
        "clearly_beat": 2,
        "closed_half": 2,
    }


def test_closed_share_is_of_the_reported_means(evaluated: dict) -> None:
    for task in evaluated["tasks"].values():
        metric, best = task["primary"], task["best_baseline"]
        passed = {n: forms["round_trip"][metric]["mean"] for n, forms in task["baselines"].items()}
        assert passed[best] == max(passed.values())
        answer = task["students"]["pupil"]["scores"][metric]["mean"]
        ceiling = task["ceiling"][metric]["mean"]
        wanted = (answer - passed[best]) / (ceiling - passed[best])
        assert task["students"]["pupil"]["closed"]["mean"] == pytest.approx(wanted)
        assert task["students"]["pupil"]["gain"]["mean"] == pytest.approx(answer - passed[best])


def test_scores_csv_repeats_the_numbers(evaluated: dict, tmp_path: Path) -> None:
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == results.COLUMNS
    found = {(row["task"], row["method"], row["metric"]): float(row["mean"]) for row in rows}
    assert len(found) == len(rows)
    derain = evaluated["tasks"]["derain"]
    wanted = derain["baselines"]["copy_query"]["raw"]["psnr"]["mean"]
    assert found["derain", "baseline/copy_query/raw", "psnr"] == pytest.approx(wanted)
    loss = derain["students"]["pupil"]["loss"]["all"]["perplexity"]["mean"]
    assert found["derain", "student/pupil", "perplexity_all"] == pytest.approx(loss)


def test_batches_change_nothing(
    shards: Path, tokenizer: Any, students: Students, evaluated: dict, tmp_path: Path
) -> None:
    again = run(
        shards,
        tokenizer,
        students,
        output=tmp_path / "again",
        tasks=["derain", "derain"],
        queries=12,
        batch_size=12,
    )
    mine, other = (x["tasks"]["derain"]["students"]["pupil"] for x in (evaluated, again))
    assert list(again["tasks"]) == ["derain"]
    assert mine["scores"]["psnr"] == pytest.approx(other["scores"]["psnr"])


def test_as_many_examples_as_are_shown(
    shards: Path,
    tokenizer: Any,
    students: Students,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(measure, "EXAMPLES", 3)
    run(shards, tokenizer, students, output=tmp_path, tasks=["derain"], queries=4, batch_size=2)
    page = (tmp_path / "report.html").read_text()
    assert page.count('class="example"') == 3
    assert 'alt="derain, query 3: answer of pupil"' in page


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ["derian"]}, "did you mean 'derain'"),
        ({"queries": 13}, "set queries=12"),
        ({"queries": 0}, "queries=0 is below 1"),
        ({"pairs": 9}, "set pairs=8"),
        ({"pairs": 4}, "context of student 'sage' is 128: set pairs=3"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"students": {}}, "set students.NAME=PATH"),
        ({"input": Path("nowhere")}, "delvm prepare"),
        ({"codes": {"resolution": 32}}, "16 px.*resolution 32"),
        ({"codes": {"levels": 3}}, "27 .*216"),
        ({"histories": {"sage": Path("none.csv")}}, "none.csv"),
    ],
)
def test_refusals(
    shards: Path,
    tokenizer: Any,
    students: Students,
    tmp_path: Path,
    make_tokenizer: Callable[..., Any],
    changes: dict,
    words: str,
) -> None:
    if "codes" in changes:
        changes = {"tokenizer": make_tokenizer(**changes["codes"])}
    asked = {
        "input": shards,
        "tokenizer": tokenizer,
        "students": students,
        "output": tmp_path / "out",
        "queries": 12,
    } | changes
    with pytest.raises(UserError, match=words):
        run(**asked)
    assert not (tmp_path / "out").exists()


def test_examples_that_are_no_pairs(
    shards: Path, tokenizer: Any, students: Students, tmp_path: Path
) -> None:
    root = tmp_path / "mixed"
    shutil.copytree(shards, root)
    for split in ("val", "test"):
        grey = np.full((16, 16, 3), 99, np.uint8)
        alone = [Example(f"{i}", "images", (grey,)) for i in range(12)]
        write_examples(root, split, "images", alone, source="tiny", seed=0, image_size=16)
    output = tmp_path / "out"
    with pytest.raises(UserError, match="'images' has 1 images per example"):
        run(root, tokenizer, students, output=output, tasks=["images"], queries=12)
    report = run(root, tokenizer, students, output=output, queries=12)
    assert set(report["tasks"]) == set(TASKS)
    drawn = reconstruction.run(root, tokenizer, output=tmp_path / "drawn", queries=12)
    assert list(drawn["tasks"]["images"]) == ["picture 1"]
    assert drawn["all"]["psnr"]["n"] == 12 * (2 * len(TASKS) + 1)


def test_student_of_another_tokenizer(
    shards: Path, tokenizer: Any, students: Students, tmp_path: Path
) -> None:
    students["sage"].tokenizer_fingerprint = "0123456789abcdef"
    with pytest.raises(UserError, match=r"'sage'.*0123456789abcdef.*set tokenizer=PATH"):
        run(shards, tokenizer, students, output=tmp_path, queries=2)
