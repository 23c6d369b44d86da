"""Two evaluations compared query by query."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from delvm.evaluation import evaluate_students
from delvm.evaluation.answers.store import AnswerStore, Part
from delvm.evaluation.comparison import compare, load_run
from delvm.evaluation.scores import bootstrap
from tests.evaluation.conftest import TASKS, BlockTokenizer, Oracle


@pytest.fixture(scope="module")
def evaluated(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student that is half right, then the one that is always right, under one name."""
    folder = tmp_path_factory.mktemp("evaluated")
    tokenizer: Any = BlockTokenizer()
    known = [pair for task in TASKS for pair in read_examples(shards, "test", task)]
    options: Any = {"tasks": ["derain", "edges"], "batch_size": 5}
    for name, accuracy, count in (("a", 0.5, 12), ("b", 1.0, 10)):
        students: Any = {"mine": Oracle(tokenizer, known, accuracy)}
        evaluate_students(
            shards, tokenizer, students, output_dir=folder / name, num_queries=count, **options
        )
    return folder


@pytest.fixture
def runs(evaluated: Path, tmp_path: Path) -> tuple[str, str]:
    """Copies of both, which a test may change."""
    shutil.copytree(evaluated, tmp_path, dirs_exist_ok=True)
    return str(tmp_path / "a"), str(tmp_path / "b")


def values(folder: str, metric: str) -> np.ndarray:
    with (Path(folder) / "results.csv").open() as file:
        expected = ("derain", "student/mine", metric)
        rows = csv.DictReader(file)
        return np.array([
            float(row["value"]) for row in rows
            if (row["task"], row["method"], row["metric"]) == expected
        ])  # fmt: skip


def test_differences_are_paired(runs: tuple[str, str], tokenizer: Any, tmp_path: Path) -> None:
    found = compare(runs, tmp_path / "out", tokenizer)
    one, other = values(runs[0], "psnr")[:10], values(runs[1], "psnr")
    psnr = found["tasks"]["derain"]["mine"]["psnr"]
    assert psnr["difference"]["mean"] == pytest.approx((other - one).mean(), rel=1e-4)
    expected = bootstrap.mean_difference_ci(other, one)
    assert psnr["difference"]["low"] == pytest.approx(expected.low, rel=1e-4)
    assert psnr["difference"]["n"] == 10 and psnr["difference"]["low"] > 0
    assert psnr["a"]["mean"] == pytest.approx(one.mean(), rel=1e-4)
    assert found["tasks"]["derain"]["mine"]["loss_answer"]["difference"]["high"] < 0
    assert "ods" in found["tasks"]["edges"]["mine"]
    assert found["settings"]["num_queries"] == [12, 10]
    assert json.loads((tmp_path / "out/comparison.json").read_text()) == found
    with (tmp_path / "out/comparison.csv").open() as file:
        rows = {(r["task"], r["metric"]): r for r in csv.DictReader(file)}
    assert float(rows["derain", "psnr"]["difference"]) == psnr["difference"]["mean"]


def test_metrics_of_one_evaluation_alone_are_left_out_and_listed(
    runs: tuple[str, str], tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    request = json.loads((tmp_path / "b/answers/request.json").read_text())
    store = AnswerStore(tmp_path / "b/answers", request, first_rank=True)
    for part in (Part("derain", 0, 0, 5), Part("derain", 0, 5, 10)):
        rows = store.load(part)
        assert rows is not None
        del rows.scores["student/mine"]["psnr_y"]  # as an earlier version would have it
        store.save(part, rows)
    found = compare(runs, tmp_path / "out", tokenizer)["tasks"]["derain"]["mine"]
    assert "psnr_y" not in found and "ssim_y" in found
    assert "compare: psnr_y of derain left out" in capsys.readouterr().err


def test_report_shows_the_answers_side_by_side(
    runs: tuple[str, str], tokenizer: Any, tmp_path: Path, make_tokenizer: Any, capsys: Any
) -> None:
    compare(runs, tmp_path / "out", tokenizer)
    page = (tmp_path / "out/comparison.html").read_text()
    assert page.count("answer of a") == page.count("answer of b") == 2 * 6
    one, other = values(runs[0], "psnr")[:10], values(runs[1], "psnr")
    best = int((other - one).argmax())
    assert f'alt="derain, derain-{best}: answer of b"' in page
    assert page.index(f"derain-{best}<") < page.index(f"derain-{int((other - one).argmin())}<")
    compare(runs, tmp_path / "other", make_tokenizer(levels=5))
    assert "set tokenizer=PATH" in capsys.readouterr().err
    assert "answer of a" not in (tmp_path / "other/comparison.html").read_text()


def test_what_cannot_be_compared_is_refused(
    runs: tuple[str, str], tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="does not name two"):
        compare([runs[0]], tmp_path / "out")
    with pytest.raises(UserError, match="has no results.json: run `delvm evaluate"):
        compare([runs[0], str(tmp_path / "none")], tmp_path / "out")
    path = Path(runs[1]) / "results.json"
    content = json.loads(path.read_text())
    for change, words in (
        ({"students": {"x": {}, "y": {}}}, "has the students mine"),
        ({"queries": {}}, "no task in common"),
    ):
        path.write_text(json.dumps(content | change))
        with pytest.raises(UserError, match=words):
            compare(runs, tmp_path / "out")
    other = json.loads(json.dumps(content))
    other["provenance"]["data"]["derain"]["test"]["seed"] = 9
    path.write_text(json.dumps(other))
    with pytest.raises(UserError, match="test pairs of derain differ: .*seed 9"):
        compare(runs, tmp_path / "out")
    path.write_text(json.dumps(content))
    (Path(runs[1]) / "answers/edges/draw0-000005.npz").unlink()
    with pytest.raises(UserError, match="lacks answers of edges"):
        load_run(runs[1])


def test_difference_of_set_metrics_is_paired() -> None:
    rng = np.random.default_rng(0)
    a = rng.random((50, 1, 2))
    b = a + 0.1
    groups = np.array([""] * 50)

    def mean(counts: np.ndarray, groups: np.ndarray) -> float:
        return float(counts[:, 0].mean())

    one, other, change = bootstrap.set_difference_ci(mean, a, b, groups)
    assert one == bootstrap.set_metric_ci(mean, a, groups)
    assert [change.mean, change.low, change.high] == pytest.approx([0.1] * 3)
    assert other.high - other.low > 0.05


BROKEN: dict[str, Any] = {
    "queries": [{"queries": {"derain": [{"key": 1}]}}, {"queries": {"../derain": []}}, {}],
    "provenance": [{"provenance": {}}, {"provenance": []}],
    "settings": [{"settings": {"num_queries": 12, "batch_size": 0, "num_draws": 1}}],
    "students": [{"students": 3}],
}


@pytest.mark.parametrize("key", BROKEN)
def test_results_of_another_form_are_refused(
    key: str, runs: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "a/results.json"
    whole = json.loads(file.read_text())
    for change in BROKEN[key]:
        file.write_text(json.dumps({**whole, **change} if change else {"queries": {}}))
        with pytest.raises(UserError, match="is not the result of an evaluation of students"):
            compare(runs, tmp_path / "out")


def test_no_images_of_pairs_that_were_prepared_again(
    runs: tuple[str, str], tokenizer: Any, tmp_path: Path, capsys: Any
) -> None:
    for name in ("a", "b"):
        file = tmp_path / name / "results.json"
        results = json.loads(file.read_text())
        results["provenance"]["data"]["derain"]["test"]["seed"] = 7  # of the pairs evaluated then
        file.write_text(json.dumps(results))
    found = compare(runs, tmp_path / "out", tokenizer)
    assert found["tasks"]["derain"]["mine"]["psnr"]["difference"]["n"] == 10
    assert "no images: the test pairs of derain in" in capsys.readouterr().err
    page = (tmp_path / "out/comparison.html").read_text()
    assert "derain-0: answer of a" not in page and "edges" in page
