"""Evaluations that are killed, repeated, split over ranks, or repeated with other prompts."""

import csv
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from delvm import tasks
from delvm.data.encode.executors.base import Rank
from delvm.errors import UserError
from delvm.evaluation import evaluate_students, students
from delvm.evaluation.answers import ray_workers, store
from delvm.evaluation.answers.store import AnswerStore, Part, ScoredRows, concatenate
from delvm.evaluation.scores import scoring

Options = dict[str, Any]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Part]:
    """The parts that are computed, of which `stop_after` may be set."""
    found: list[Part] = []
    score_rows = scoring.score_rows

    def counted(query_set: Any, rows: slice, *rest: Any) -> ScoredRows:
        found.append(Part(query_set.task, 0, rows.start, rows.stop))
        return score_rows(query_set, rows, *rest)

    monkeypatch.setattr(students, "score_rows", counted)
    return found


@pytest.fixture
def request_(shards: Path, tokenizer: Any, students: Any, tmp_path: Path) -> Options:
    return {
        "input_dir": shards, "tokenizer": tokenizer, "students": students,
        "output_dir": tmp_path / "out", "tasks": ["derain", "edges"], "num_queries": 7,
        "batch_size": 3,
    }  # fmt: skip


def files(folder: Path) -> dict[str, bytes]:
    names = ("metrics.json", "scores.csv", "results.csv", "report.html", "derain.png")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.slow
def test_a_killed_evaluation_continues_with_the_same_result(
    request_: Options, calls: list[Part], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluate_students(**request_ | {"output_dir": tmp_path / "once"})
    assert len(calls) == 6
    calls.clear()
    save = AnswerStore.save

    def killed(self: AnswerStore, part: Part, rows: ScoredRows) -> None:
        if len(calls) == 4:
            raise KeyboardInterrupt
        save(self, part, rows)

    monkeypatch.setattr(AnswerStore, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate_students(**request_)
    assert not (tmp_path / "out/metrics.json").exists()
    monkeypatch.setattr(AnswerStore, "save", save)
    calls.clear()
    evaluate_students(**request_)
    assert calls == [Part("edges", 0, 0, 3), Part("edges", 0, 3, 6), Part("edges", 0, 6, 7)]
    assert files(tmp_path / "out") == files(tmp_path / "once")
    calls.clear()
    evaluate_students(**request_)
    assert not calls and files(tmp_path / "out") == files(tmp_path / "once")
    evaluate_students(**request_, overwrite=True)
    assert len(calls) == 6


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"seed": 1}, {"num_shots": 2}, {"students": "half"}])
def test_answers_of_other_settings_are_not_kept(
    request_: Options, calls: list[Part], change: Options
) -> None:
    evaluate_students(**request_)
    calls.clear()
    if "students" in change:
        change = {"students": {"oracle": request_["students"]["half"]}}
    evaluate_students(**request_ | change)
    assert len(calls) == 6


def test_answers_without_a_new_metric_are_not_kept(
    request_: Options, calls: list[Part], monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate_students(**request_)
    calls.clear()
    derain = tasks.get("derain")
    more = replace(derain, metric_fns={**derain.metric_fns, "one": lambda prediction, truth: 1.0})
    monkeypatch.setitem(tasks._TASKS, "derain", more)
    found = evaluate_students(**request_)
    assert found["tasks"]["derain"]["ceiling"]["one"]["mean"] == 1.0 and len(calls) == 6


def test_a_damaged_part_is_answered_again(request_: Options, calls: list[Part]) -> None:
    evaluate_students(**request_)
    calls.clear()
    path = request_["output_dir"] / "answers/derain/draw0-000003.npz"
    path.write_bytes(path.read_bytes()[:100])
    evaluate_students(**request_)
    assert calls == [Part("derain", 0, 3, 6)]


@pytest.mark.slow
def test_ranks_share_the_work_and_rank_0_writes(
    request_: Options, calls: list[Part], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    evaluate_students(**request_ | {"output_dir": tmp_path / "once"})
    calls.clear()
    monkeypatch.setattr(store, "POLL_S", 0.01)
    current = threading.local()
    monkeypatch.setattr(ray_workers, "rank_from_env", lambda: current.rank)
    results: Options = {}

    def run(number: int) -> None:
        current.rank = Rank(number, 3)
        results[str(number)] = evaluate_students(**request_)

    threads = [threading.Thread(target=run, args=(number,)) for number in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == 6 and len(set(calls)) == 6
    assert results["1"] == results["2"] == {} and results["0"]["tasks"]
    assert files(tmp_path / "out") == files(tmp_path / "once")


def test_a_rank_does_not_wait_for_rank_0_forever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(store, "POLL_S", 0.01)
    monkeypatch.setattr(store, "START_TIMEOUT_S", 0.05)
    with pytest.raises(UserError, match=r"RANK=0 to start .* with the same settings"):
        AnswerStore(tmp_path / "answers", {"seed": 1}, first_rank=False)


def test_parts_are_read_as_they_were_written(tmp_path: Path) -> None:
    store = AnswerStore(tmp_path / "answers", {"seed": 1}, first_rank=True)
    part = Part("derain", 2, 4, 6)
    assert store.load(part) is None
    values = np.array([1.0, np.nan])
    rows = ScoredRows(
        {"student/a/b: ü": {"psnr": values}}, {"ceiling": {"ods": np.ones((2, 3))}},
        {"a/b: ü": {"loss_all": values}}, {"a/b: ü": {"ids": np.ones((2, 5), np.int32)}},
    )  # fmt: skip
    store.save(part, rows)
    found = store.load(part)
    assert found is not None
    np.testing.assert_equal(found.__dict__, rows.__dict__)
    both = concatenate([rows, rows])
    assert both.counts["ceiling"]["ods"].shape == (4, 3)
    assert both.answers["a/b: ü"]["ids"].shape == (4, 5)
    assert store.path(part) == tmp_path / "answers/derain/draw2-000004.npz"


@pytest.mark.slow
def test_several_draws_of_prompts_have_a_spread(request_: Options, tmp_path: Path) -> None:
    one = evaluate_students(**request_)
    three = evaluate_students(**request_ | {"output_dir": tmp_path / "three"}, num_draws=3)
    result = three["tasks"]["derain"]
    for student in result["students"].values():
        spread = student["draws"]["psnr"]
        assert spread["mean"] == pytest.approx(np.mean(spread["means"]))
        assert spread["std"] == pytest.approx(np.std(spread["means"], ddof=1))
        assert student["scores"]["psnr"]["mean"] == pytest.approx(spread["mean"])
    # The first draw is that of an evaluation with one; baselines depend on the prompts too.
    first = one["tasks"]["derain"]["students"]["half"]
    assert result["students"]["half"]["draws"]["psnr"]["means"][0] == pytest.approx(
        first["scores"]["psnr"]["mean"]
    )
    assert "draws" not in first
    nearest = [x["tasks"]["derain"]["baselines"]["nearest_target"]["raw"] for x in (one, three)]
    assert nearest[0] != nearest[1]
    page = (tmp_path / "three/report.html").read_text()
    assert "over 3 draws of prompts" in page and "Prompts were sampled 3 times" in page
    queries = json.loads((tmp_path / "three/results.json").read_text())["queries"]["derain"]
    assert [len(each["prompts"]) for each in queries] == [3] * 7


def test_results_record_where_the_numbers_come_from(request_: Options, tmp_path: Path) -> None:
    metrics = evaluate_students(**request_)
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["tasks"] == metrics["tasks"]
    source = found["provenance"]
    assert {"delvm", "python", "torch", "numpy"} <= source["versions"].keys()
    assert source["hardware"]["device"] == "cpu" and source["hardware"]["cpus"] >= 1
    assert len(source["tokenizer"]) == len(source["students"]["oracle"]) == 16
    assert source["data"]["derain"]["test"]["source"] == "tiny"
    assert source["seeds"]["prompts"] == 0 and source["settings"]["num_queries"] == 7
    query = found["queries"]["derain"][2]
    assert query["key"] == "derain-2" and query["group"] == ""
    assert len(query["prompts"]) == 1 and len(set(query["prompts"][0])) == 3
    with (tmp_path / "out/results.csv").open() as file:
        rows = list(csv.DictReader(file))
    values = [
        float(row["value"])
        for row in rows
        if (row["task"], row["method"], row["metric"]) == ("derain", "student/half", "psnr")
    ]
    assert len(values) == 7
    mean = metrics["tasks"]["derain"]["students"]["half"]["scores"]["psnr"]["mean"]
    assert np.mean(values) == pytest.approx(mean, rel=1e-5)


def test_worst_median_and_best_answers_are_shown(request_: Options, tmp_path: Path) -> None:
    evaluate_students(**request_)
    page = (tmp_path / "out/report.html").read_text()
    for rank in ("worst", "median", "best"):
        assert page.count(f"{rank} answer of half") == 2  # of two tasks
    with (tmp_path / "out/results.csv").open() as file:
        values = {
            int(row["query"]): float(row["value"])
            for row in csv.DictReader(file)
            if (row["task"], row["method"], row["metric"]) == ("derain", "student/half", "psnr")
        }
    worst = min(values, key=lambda row: values[row])
    section = page[page.index('id="task-derain"') :]
    number = section[: section.index("worst answer of half")].rpartition("query ")[2]
    assert int(number.split(":")[0]) == worst + 1
