"""The data module of streams: its batches, workers, and what a checkpoint of it continues."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

import delvm
from delvm.errors import UserError
from delvm.interop.load import load_student
from delvm.training.callbacks.checkpoint import latest_valid_checkpoint
from delvm.training.data.datamodules import SentenceData, check_data
from delvm.training.data.streaming import StreamingSentenceDataModule
from tests.data.datasets.streams import COUNTS, IMAGES, examples_of, write_corpus
from tests.training.runs import curve, student_config, train, write_ids
from tests.training.stream_ranks import Ranks, stream_config


@pytest.fixture
def root(tmp_path, monkeypatch):
    return write_corpus(tmp_path, monkeypatch)


@pytest.fixture(autouse=True)
def end_loaders():
    yield
    Ranks.end_all()


def open_ranks(root, ranks=1, state=None, **changes):
    settings = {"images_per_sentence": IMAGES} | changes
    return Ranks(StreamingSentenceDataModule, root, ranks, state, **settings)


def sentences(batches):
    return [tuple(ids) for batch in batches for ids in batch["input_ids"].tolist()]


def counts(run, batches):
    return Counter(each for b in batches for each in examples_of(b, run.modules[0].tasks))


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (3, 0), (2, 2)])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.slow
def test_resume_continues_with_the_next_batch(root, ranks, workers, steps, tmp_path):
    """To the last id, with as many ranks and workers; what was prefetched does not count."""
    unbroken = sentences(open_ranks(root, ranks, num_workers=workers).pull(12))
    first = open_ranks(root, ranks, num_workers=workers)
    seen = sentences(first.pull(steps))
    torch.save(first.state_dict(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    again = open_ranks(root, ranks, state, num_workers=workers)
    assert seen + sentences(again.pull(12 - steps)) == unbroken
    assert again.modules[0].position == 12 * ranks * 2


def test_one_worker_reads_what_the_training_process_would(root):
    assert sentences(open_ranks(root).pull(6)) == sentences(open_ranks(root, num_workers=1).pull(6))


@pytest.mark.parametrize(
    ("ranks", "window", "message"),
    [
        (1, 8, ""),
        (3, 8, "(derain 2, video 1)"),
        (8, 1, "(video 7), so"),
        (16, 8, "(derain 2, video 1)"),
        (16, 1, "(derain 12, video 7)"),
    ],
)
@pytest.mark.slow
def test_tasks_with_fewer_windows_than_streams_are_reported(root, ranks, window, message, capsys):
    run = open_ranks(root, ranks, shuffle_window_shards=window)
    run.pull(1)
    error = capsys.readouterr().err
    assert error.count("streams (") == bool(message) and message in error
    if message:
        assert f"data: {ranks} streams ({ranks} ranks x 1 workers)" in error
        remedy = "data=sentences" if window == 1 else "data.shuffle_window_shards=1"
        assert f"set {remedy} to read" in error


@pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3)])
def test_resume_with_another_number_of_ranks(root, before, after, capsys):
    """At the end of the epoch each example was read once."""
    settings = {"task_weights": {"derain": 1.0}, "batch_size": 1}
    first = open_ranks(root, before, **settings)
    seen = counts(first, first.pull(4 // before))
    then = open_ranks(root, after, first.state_dict(), **settings)
    assert f"{before} ranks x 1 workers had read it, now {after} x 1 do" in capsys.readouterr().err
    assert max(seen.values()) == 1
    for module in then.modules:
        reader = module.train.open_stream(0, module.train.rank)
        per_epoch = module.train.layout.shuffles[0].num_windows
        sequence = module.train.state.sequences[0]
        while sequence[reader.position.element].window < per_epoch:
            seen["derain", int(reader.take(1)[0, 0]) // 2] += 1
    assert seen == Counter({("derain", number): 1 for number in range(COUNTS["derain"])})


def test_resume_with_another_number_twice(root):
    """The leftovers of the first change are in the state of the second."""
    settings = {"task_weights": {"derain": 1.0}, "batch_size": 1}
    first = open_ranks(root, 4, **settings)
    seen = counts(first, first.pull(1))
    second = open_ranks(root, 1, first.state_dict(), **settings)
    seen += counts(second, second.pull(1))
    third = open_ranks(root, 2, second.state_dict(), **settings)
    seen += counts(third, third.pull(1))
    assert max(seen.values()) == 1 and sum(seen.values()) == 7 * 3
    assert any(second.state_dict()["leftovers"].values())


def test_mixture_continues_with_another_number_of_ranks(root):
    settings = {"task_weights": {"derain": 3.0, "video": 1.0}}
    first = open_ranks(root, 2, **settings)
    tasks = [task for b in first.pull(3) for task in b["task"].tolist()]
    again = open_ranks(root, 3, first.state_dict(), **settings)
    tasks += [task for b in again.pull(2) for task in b["task"].tolist()]
    assert tasks.count(1) == len(tasks) / 4


@pytest.mark.slow
@pytest.mark.parametrize(
    "pattern",
    ["https://HOST/derain/{000000..000099}.tar", "pipe:ssh HOST cat /data/{000000..000099}.tar"],
)
@pytest.mark.parametrize("option", ["streaming", "streaming_images"])
def test_documented_settings_compose(option, pattern):
    words = [f"data={option}", f'data.shards={{derain: "{pattern}"}}', "data.num_workers=4"]
    data = delvm.compose("train", words).data
    assert data.shards == {"derain": pattern} and data.num_workers == 4
    assert data.rejects == "outputs/student/rejected_shards.jsonl"


def test_loader_has_a_length(root):
    assert len(StreamingSentenceDataModule(str(root), images_per_sentence=6).train_dataloader())


def test_student_can_train_on_it(root):
    module = StreamingSentenceDataModule(str(root), images_per_sentence=6)
    check_data(module, SentenceData, "module=student")
    assert module.sentence_length == 24 and module.tasks == ["derain", "video"]
    assert module.codebook.shape == (1000, 2) and module.tokenizer_fingerprint == "f" * 16


def test_order_is_compared(root):
    state = open_ranks(root).state_dict()
    with pytest.raises(UserError, match="shuffle_window_shards 2 != 4"):
        open_ranks(root, state=state, shuffle_window_shards=4)


@pytest.mark.parametrize(
    "change",
    [
        {"positions": None},
        {"positions": torch.zeros(1, 3, 2, dtype=torch.int64)},
        {"positions": torch.zeros(1, 2, 2)},
        {"positions": torch.zeros(0, 2, 2, dtype=torch.int64)},
        {"positions": -torch.ones(1, 2, 2, dtype=torch.int64)},
        {"num_workers": 0},
        {"num_workers": 3},
        {"first_worker": 1},
        {"positions": torch.zeros(1, 2, 2, dtype=torch.int64).to_sparse()},
        {"positions": torch.zeros(1, 2, 2, dtype=torch.int64, device="meta")},
        {"base": {"derain": 0}},
        {"base": {"derain": -1, "video": 0}},
        {"leftovers": {"derain": [[1]], "video": []}},
        {"leftovers": {"derain": [[1, -1]], "video": []}},
        {"position": "x"},
        {"position": -3},
        {"position": 10**400},
        {"base": {"derain": 10**25, "video": 0}},
        {"leftovers": {"derain": [[10**25, 0]], "video": []}},
        {"positions": torch.full((1, 2, 2), 2**62)},
    ],
)
def test_damaged_position_is_refused(root, change):
    state = open_ranks(root).state_dict() | change
    with pytest.raises(UserError, match="the checkpoint's position in the data is damaged"):
        open_ranks(root, state=state)
    state.pop(next(iter(change)))
    with pytest.raises(UserError, match="is damaged: .*(missing|positions)"):
        open_ranks(root, state=state)


def test_overfit_batches_is_refused(root):
    module = StreamingSentenceDataModule(str(root), images_per_sentence=6)
    module.overfit_batches = 1
    with pytest.raises(UserError, match="set data=sentences"):
        module.train_dataloader()


def test_workers_take_turns(root):
    batches = open_ranks(root, num_workers=2).pull(4)
    assert [batch["stream"][0] for batch in batches] == [0, 1, 0, 1]
    assert [batch["next_index"] for batch in batches] == [2, 4, 6, 8]


@pytest.mark.slow
def test_resumed_run_continues_its_data(tokens, tmp_path):
    """Six steps in one job and in two: bit-identical weights."""
    stream = ("data=streaming", "data.num_workers=2", "data.shuffle_window_shards=1")
    train(student_config(tokens, 6, *stream), tmp_path / "one")
    two = student_config(tokens, 6, *stream, "trainer.val_check_interval=3")
    two.callbacks.stop_at_step.step = 3
    train(two, tmp_path / "two")
    two.callbacks.stop_at_step.step, two.resume = None, "auto"
    train(two, tmp_path / "two")
    one, resumed = (load_student(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[key], resumed[key]) for key in one)


@pytest.mark.slow
def test_checkpoint_of_the_other_reader_is_refused(tokens, tmp_path):
    train(student_config(tokens, 2), tmp_path)
    with pytest.raises(UserError, match="was trained on data=sentences.*: set data=sentences"):
        train(student_config(tokens, 4, "data=streaming", "resume=auto"), tmp_path)


@pytest.mark.slow
def test_run_lists_its_rejected_shards(tmp_path, monkeypatch):
    """They belong to the run: one that replaces it does not keep the list."""
    monkeypatch.setattr("delvm.data.shards.manifest.TOKENS_PER_RECORD", 64)
    monkeypatch.setattr("delvm.data.shards.manifest.RECORDS_PER_SHARD", 2)
    write_ids(tmp_path / "tokens")
    path = tmp_path / "tokens/train/pose/000003.tar"
    complete = path.read_bytes()
    path.write_bytes(complete[:700])
    stream = ("data=streaming", "data.retries=0", "data.shuffle_window_shards=32")
    train(student_config(tmp_path / "tokens", 2, *stream), tmp_path / "run")
    rejects = tmp_path / "run" / "rejected_shards.jsonl"
    assert json.loads(rejects.read_text().splitlines()[0])["shard"] == str(path)
    path.write_bytes(complete)
    train(student_config(tmp_path / "tokens", 2, *stream, "overwrite=true"), tmp_path / "run")
    assert not rejects.exists()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The shards, and the runs of two processes that `stream_ranks` trains on them."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("delvm.data.shards.manifest.TOKENS_PER_RECORD", 64)
        patch.setattr("delvm.data.shards.manifest.RECORDS_PER_SHARD", 2)
        write_ids(folder / "tokens")
    words = ["--standalone", "--nproc-per-node", "2", "-m", "tests.training.stream_ranks"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, folder / "tokens", folder],
        cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_resume_their_streams(two_processes, strategy):
    one, two = (
        curve(two_processes / strategy / name, "train/loss") for name in ("one_job", "two_jobs")
    )
    assert len(one) == 6 and one == two


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_one_process_continues_the_streams_of_two(two_processes, tmp_path, strategy, capsys):
    source = two_processes / strategy / "two_jobs"
    cfg = stream_config(two_processes / "tokens", 1, "trainer.max_steps=8")
    cfg.resume = str(latest_valid_checkpoint(source))
    train(cfg, tmp_path)
    assert "2 ranks x 1 workers had read it, now 1 x 1 do" in capsys.readouterr().err
    assert len(curve(tmp_path, "train/loss")) == 2
