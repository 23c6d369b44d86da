"""Executors: the bytes are the same for all of them, even if workers die."""

import re
import socket
import sys
import threading
from dataclasses import replace

import pytest

from delvm import tasks
from delvm.data.augment import BalanceConfig, BalanceMode
from delvm.data.encode import encode as encoding
from delvm.data.encode import shard_task
from delvm.data.encode.encode import encode
from delvm.data.encode.executors import EXECUTORS, base
from delvm.data.encode.executors.local import Local
from delvm.data.encode.executors.processes import Processes
from delvm.data.encode.executors.ray import RayActors
from delvm.data.encode.executors.submitit import SubmititJobs
from delvm.data.encode.shard_task import decode_batches, parallel_map, prefetch
from delvm.data.prepare.prepare import prepare
from delvm.data.shards import writer
from delvm.data.shards.manifest import load_manifests
from delvm.errors import UserError
from tests.data.corpus_makers import FakeFactory, FakeSource, FakeTokenizer, contents, no_space

# 16,384 tokens per image: 32 pairs per shard.
WIDE = FakeFactory(tokens=1 << 14)
SETTINGS = {"balance": BalanceConfig(BalanceMode.augment, examples_per_task=70), "batch_size": 8}


@pytest.fixture(autouse=True)
def worker_environment(monkeypatch, root):
    """Workers can import the tests, and no rank of torchrun is set."""
    monkeypatch.setenv("PYTHONPATH", str(root))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    prepare(FakeSource(), folder / "pairs", shard_size=4)
    return folder / "pairs"


@pytest.fixture(scope="module")
def expected(pairs):
    """The files of an uninterrupted local run: 12 shards."""
    run(pairs, pairs.parent / "expected", Local())
    found = contents(pairs.parent / "expected")
    assert sum(name.endswith(".tar") for name in found) == 12
    return found


def run(pairs, output, executor, factory=WIDE, **settings):
    tokenizer = factory.plain()
    return encode(
        pairs, output, tokenizer, "abc", executor=executor, factory=factory, **SETTINGS | settings
    )


def executor_of(name, tmp_path, workers=1):
    options = {"log_dir": str(tmp_path / "jobs"), "cluster": "local", "poll_s": 0.2}
    return EXECUTORS[name](workers=workers, **options if name == "submitit" else {})


# ---------------------------------------------------------------- the same bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", "submitit"])
def test_two_workers_same_bytes_as_one_process(name, pairs, expected, tmp_path, capsys):
    manifests = run(pairs, tmp_path / "t", executor_of(name, tmp_path, 2))
    assert len(manifests) == 8 and contents(tmp_path / "t") == expected
    err = capsys.readouterr().err
    line = r"^encode: (\S+): ([\d,]+) examples in \d+\.\d s, [\d,]+ images/s$"
    lines = re.findall(line, err, re.M)
    assert len(lines) == 12 and ("train/pose/000002.tar", "6") in lines
    assert "encode: 152/152 examples" in err.splitlines()[-1]


@pytest.mark.slow
def test_dead_worker_error_and_resume_by_other_executor(pairs, expected, tmp_path, capsys):
    deadly = replace(WIDE, kill_once=str(tmp_path / "flag"))
    with pytest.raises(UserError, match=r"worker encode-0 died with code -9 .*run the same again"):
        run(pairs, tmp_path / "t", Processes(workers=1), deadly)
    written = [name for name in contents(tmp_path / "t") if name.endswith("manifest.json")]
    assert len(written) < 8
    with pytest.raises(UserError, match="not finished: run `delvm encode"):
        load_manifests(tmp_path / "t", "train", "tokens")
    run(pairs, tmp_path / "t", Local())
    assert contents(tmp_path / "t") == expected


@pytest.fixture(scope="module")
def ray(root):
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        RayActors()._start(ray)  # as a run does where none is there
        yield ray
        ray.shutdown()


@pytest.mark.slow
def test_ray_survives_dead_worker(ray, pairs, expected, tmp_path):
    deadly = replace(WIDE, kill_once=str(tmp_path / "flag"))
    run(pairs, tmp_path / "t", RayActors(workers=2, max_restarts=0), deadly)
    assert (tmp_path / "flag").exists() and contents(tmp_path / "t") == expected


@pytest.mark.slow
def test_ray_all_workers_dead_error(ray, pairs, expected, tmp_path):
    deadly = replace(WIDE, kill_once=str(tmp_path / "flag"))
    with pytest.raises(UserError, match="all of Ray's workers died"):
        run(pairs, tmp_path / "t", RayActors(workers=1, max_restarts=0), deadly)
    with pytest.raises(UserError, match=r"workers=99 of 1 CPUs each, .* room for \d+: set"):
        run(pairs, tmp_path / "t", RayActors(workers=99))
    run(pairs, tmp_path / "t", Local())
    assert contents(tmp_path / "t") == expected


def test_executor_package_not_installed_error(pairs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"executor=ray needs a .*pip install 'delvm\[scale\]'"):
        run(pairs, tmp_path / "t", RayActors())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"executor=submitit needs .*pip install 'delvm\[scale\]'"):
        run(pairs, tmp_path / "t", SubmititJobs())


def test_ray_cluster_unreachable_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(UserError, match=rf"executor.address={address} cannot be used: .*: set"):
        RayActors(address=address)._start(None)


def test_slurm_not_installed_error(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"executor.cluster=slurm cannot be used: .*srun.*: set"):
        run(pairs, tmp_path / "t", SubmititJobs(log_dir=str(tmp_path / "jobs")))


# ---------------------------------------------------------------- errors cross processes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["processes", "ray", "submitit"])
def test_user_error_is_one_line_from_every_executor(name, pairs, tmp_path, request):
    if name == "ray":
        request.getfixturevalue("ray")
    with pytest.raises(UserError) as caught:
        run(pairs, tmp_path / "t", executor_of(name, tmp_path), replace(WIDE, full=True))
    message = str(caught.value)
    assert message.startswith(
        f"No space left on device: {tmp_path}/t/train/derain/000000.tar: free"
    )
    assert "\n" not in message
    assert not [*tmp_path.rglob("*.tar")] and not [*tmp_path.rglob("*.part*")]


def test_worker_errors(pairs, tmp_path, monkeypatch):
    damaged = tmp_path / "pairs"
    prepare(FakeSource(), damaged, shard_size=4)
    file = damaged / "train/derain/000001.tar"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"000001.tar is damaged .*: delete it, and run again"):
        run(damaged, tmp_path / "t", Local())
    file.unlink()
    prepare(FakeSource(), damaged, shard_size=4)
    run(damaged, tmp_path / "t", Local())
    with pytest.raises(UserError, match="another tokenizer"):
        run(pairs, tmp_path / "u", Local(), replace(WIDE, refuse="another tokenizer"))
    monkeypatch.setattr(writer, "write_records", no_space)
    with pytest.raises(UserError, match="No space left .*what is done stays"):
        run(pairs, tmp_path / "u", Local())


class StopReporting(Exception):
    pass


@pytest.mark.slow
def test_terminated_workers_leave_no_partial_files(pairs, expected, tmp_path):
    """As after Ctrl-C, or after the error of another worker."""
    executor = Processes(workers=2, threads=1)
    slow = replace(WIDE, seconds=0.2)

    def report(count):
        raise StopReporting

    job = encoding.plan_job(pairs, tmp_path / "t", slow.plain(), "abc", SETTINGS["balance"],
                            ["train"], 8, 0)  # fmt: skip
    with pytest.raises(StopReporting):
        list(executor.run(job, [shard_task.ShardTask(0, n) for n in range(3)], slow, report))
    assert (tmp_path / "t/train/derain").exists()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_bug_in_worker_keeps_its_traceback(pairs, tmp_path):
    with pytest.raises(RuntimeError, match=r"in encode-0:\nTraceback"):
        run(pairs, tmp_path / "t", Processes(workers=1), FakeFactory(tokens=6))


# ---------------------------------------------------------------- ranks of torchrun


@pytest.mark.slow
def test_ranks_divide_shards_and_last_rank_finishes(pairs, expected, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoding, "POLL_S", 0.01)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        finished = run(pairs, tmp_path / "t", Local())
        there = [name for name in contents(tmp_path / "t") if name.endswith(".tar")]
        assert len(there) == 6 * (rank + 1)
        assert (len(finished) == 8) is (rank == 1)
        assert ("others are still at work" in capsys.readouterr().err) is (rank == 0)
    assert contents(tmp_path / "t") == expected


def test_other_ranks_wait_for_rank_0(pairs, expected, tmp_path, monkeypatch):
    """Rank 1 starts before rank 0, in a directory with other files."""
    out = tmp_path / "t"
    with pytest.raises(KeyboardInterrupt):
        encode(pairs, out, FakeTokenizer(fail_at=0, tokens=WIDE.tokens), "abc", splits=["train"])
    ranks = {}
    monkeypatch.setattr(encoding, "POLL_S", 0.01)
    monkeypatch.setattr(Local, "rank", lambda self: ranks[threading.current_thread().name])
    threads = [
        threading.Thread(target=run, args=(pairs, out, Local()), name=str(rank), daemon=True)
        for rank in (1, 0)
    ]
    ranks |= {str(rank): base.Rank(rank, 2) for rank in (0, 1)}
    threads[0].start()
    threads[0].join(0.3)
    assert threads[0].is_alive() and not (out / "train/pose/000000.tar").exists()
    threads[1].start()
    for thread in threads:
        thread.join(20)
    assert contents(out) == expected


def test_rank_timeout_and_env_errors(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(encoding, "TIMEOUT_S", 0.0)
    with pytest.raises(UserError, match="RANK=1 of WORLD_SIZE=2 waited 0 s for RANK=0"):
        run(pairs, tmp_path / "t", Local())
    with pytest.raises(UserError, match="WORLD_SIZE=2 and executor=processes, which starts"):
        run(pairs, tmp_path / "t", Processes())
    with pytest.raises(UserError, match="overwrite=true with WORLD_SIZE=2: set"):
        run(pairs, tmp_path / "t", Local(), overwrite=True)
    for rank in ("2", "-1", "x", ""):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(UserError, match="set RANK from 0 to WORLD_SIZE - 1"):
            run(pairs, tmp_path / "t", Local())


# ---------------------------------------------------------------- executors of other classes


class Reversed:
    """An executor that knows nothing of this package's classes."""

    in_process = True

    def rank(self):
        return base.Rank()

    def run(self, job, shards, factory, report):
        tokenizer = factory(0)
        for shard in reversed(shards):
            yield shard_task.encode_shard(job, shard, tokenizer, report)


def test_executor_of_another_class(pairs, expected, tmp_path):
    run(pairs, tmp_path / "t", Reversed())
    assert contents(tmp_path / "t") == expected


def test_check_executor_names_what_is_missing(pairs, tmp_path):
    for executor in EXECUTORS.values():
        assert base.check_executor(executor()).in_process is (executor is Local)
    with pytest.raises(UserError, match=r"object cannot be an executor: it has no in_process, "
                       r"rank\(\), run\(job, shards, factory, report\); add them"):  # fmt: skip
        run(pairs, tmp_path / "t", object())


@pytest.mark.slow
def test_flips_of_a_registered_task_are_known_to_workers(pairs, tmp_path, monkeypatch):
    """A task may be registered only in the process that plans the job."""
    own = replace(tasks.get("derain"), allows_hflip=False)
    monkeypatch.setitem(tasks._TASKS, "derain", own)
    run(pairs, tmp_path / "a", Local(), splits=["train"])
    run(pairs, tmp_path / "b", Processes(workers=1), splits=["train"])
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# ---------------------------------------------------------------- prefetching


def test_prefetch_keeps_order_and_errors():
    assert list(prefetch(iter(range(9)))) == list(range(9))
    assert list(prefetch(iter([]))) == []

    def broken():
        yield 1
        raise UserError("damaged")

    items = prefetch(broken())
    assert next(items) == 1
    with pytest.raises(UserError, match="damaged"):
        next(items)


def test_parallel_map_keeps_order_and_errors(pairs, expected, tmp_path, monkeypatch):
    assert list(parallel_map(lambda n: n * n, iter(range(50)), 4)) == [n * n for n in range(50)]
    assert list(parallel_map(str, iter([]), 2)) == []
    with pytest.raises(UserError, match="damaged"):
        list(decode_batches(iter([[lambda: 1], [broken_image]]), 2))
    monkeypatch.setattr(shard_task, "_decode_threads", lambda tokenizer: 3)  # as on a GPU
    run(pairs, tmp_path / "t", Local())
    assert contents(tmp_path / "t") == expected


def broken_image():
    raise UserError("damaged")


@pytest.mark.slow
def test_prefetch_stops_when_closed():
    before, made = threading.active_count(), []
    items = prefetch(made.append(n) or n for n in range(1000))
    assert next(items) == 0
    items.close()
    assert threading.active_count() == before and len(made) < 5
