"""Evaluations answered by actors of Ray: the same files as of one process."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from delvm.data.ray_cluster import RayCluster
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from delvm.evaluation import evaluate_students, evaluate_video
from delvm.evaluation.answers import ray_workers
from delvm.evaluation.answers.ray_workers import RayWorkers, check_rank, check_same_sources
from tests.data.shard_makers import write_examples
from tests.evaluation.conftest import SIDE, BlockTokenizer, Oracle
from tests.evaluation.test_resume import files
from tests.evaluation.test_video import FRAMES, all_clips

Options = dict[str, Any]


@dataclass(frozen=True)
class LoadFakes:
    """The fake models, which each worker makes for itself."""

    pairs: Path

    def __call__(self) -> Any:
        tokenizer = BlockTokenizer()
        known = read_examples(self.pairs, "test", "derain")
        return tokenizer, {"half": Oracle(tokenizer, known, 0.5)}


@pytest.fixture(scope="module")
def cluster(root: Path) -> Iterator[RayCluster]:
    """Two workers on this machine."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        found = RayCluster(workers=2)
        found._start(ray)  # as an evaluation does where none is there
        yield found
        ray.shutdown()


@pytest.fixture(autouse=True)
def no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_workers, "POLL_S", 0.05)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.slow
def test_two_workers_give_the_files_of_one_process(
    cluster: RayCluster, shards: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = LoadFakes(shards)
    evaluate = partial(
        evaluate_students, shards, *load(), tasks=["derain", "edges"], num_queries=7, batch_size=3
    )
    evaluate(output_dir=tmp_path / "once")
    workers = RayWorkers(cluster, load)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    evaluate(output_dir=Path("out"), workers=workers)  # a path relative to this directory
    err = capsys.readouterr().err
    assert "2 workers of Ray" in err and "14/14 queries" in err
    assert files(tmp_path / "out") == files(tmp_path / "once")
    (tmp_path / "out/answers/derain/draw0-000003.npz").unlink()
    evaluate(output_dir=Path("out"), workers=workers)
    assert "3/3 queries" in capsys.readouterr().err
    assert files(tmp_path / "out") == files(tmp_path / "once")


@dataclass(frozen=True)
class LoadOthers(LoadFakes):
    """Other weights than those that the evaluation was asked for."""

    def __call__(self) -> Any:
        tokenizer, students = super().__call__()
        students["half"].weight.data += 1
        return tokenizer, students


@pytest.mark.slow
def test_a_worker_refuses_other_weights(cluster: RayCluster, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a worker has other students than the process"):
        evaluate_students(
            shards, *LoadFakes(shards)(), tasks=["derain"], num_queries=3, output_dir=tmp_path,
            workers=RayWorkers(cluster, LoadOthers(shards)),
        )  # fmt: skip


@pytest.mark.slow
def test_clips_are_continued_by_workers(cluster: RayCluster, shards: Path, tmp_path: Path) -> None:
    write_examples(
        tmp_path / "clips", "test", "video", all_clips(), images=FRAMES, source="tiny", seed=0,
        image_size=SIDE,
    )  # fmt: skip
    load = LoadFakes(shards)
    evaluate = partial(
        evaluate_video, tmp_path / "clips", *load(), num_frames=2, num_queries=5, batch_size=2
    )
    once = evaluate(output_dir=tmp_path / "once")
    found = evaluate(output_dir=tmp_path / "out", workers=RayWorkers(cluster, load))
    assert found == once
    assert len(list((tmp_path / "out/answers/video").glob("*.npz"))) == 3


def test_ranks_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = RayWorkers(RayCluster(), LoadFakes(Path()))
    assert check_rank(True, workers).world_size == 1
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert check_rank(False, None).world_size == 2
    with pytest.raises(UserError, match="WORLD_SIZE=2 and executor=ray, which starts workers"):
        check_rank(False, workers)
    with pytest.raises(UserError, match="overwrite=true with WORLD_SIZE=2: set overwrite=false"):
        check_rank(True, None)


def test_what_differs_is_named() -> None:
    check_same_sources({"a": 1}, {"a": 1})
    with pytest.raises(UserError, match="other versions, data than"):
        check_same_sources({"versions": 1, "data": 2}, {"versions": 2})
