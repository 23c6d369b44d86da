"""A teacher's stored distributions teach what the teacher itself does."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from delvm.commands.app import compose
from delvm.commands.encode import run as encode
from delvm.commands.instantiate import build_run
from delvm.configs.validate import check, config_errors
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.shards.manifest import Manifest
from delvm.data.shards.writer import write_tokens
from delvm.data.teacher_cache.store import CachePlan, TeacherCache, missing_files, write_file
from delvm.errors import UserError
from delvm.interop.load import load_student
from delvm.interop.save import save_model
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.training.losses import DistillationLoss, JensenShannon, KLDivergence, TopK
from delvm.training.teacher_cache import write_cache
from tests.training.offline_ranks import STEPS, offline
from tests.training.runs import N, V, curve, student_config, train, write_ids

K = 6


@pytest.fixture(scope="module")
def teacher(tokens, tmp_path_factory) -> Path:
    return train(student_config(tokens, 12), tmp_path_factory.mktemp("teacher"))


def store(tokens: Path, teacher: Path, path: Path, *overrides: str) -> Path:
    """Write the teacher's distributions as `delvm encode` does."""
    encode(
        compose(
            "encode",
            [f"teacher={teacher}", f"output_dir={tokens}", f"teacher_cache.path={path}",
             "teacher_cache.pairs_per_sentence=2", f"teacher_cache.top_k={K}", *overrides],
        )
    )  # fmt: skip
    return path


@pytest.fixture(scope="module")
def cache(tokens, teacher, tmp_path_factory) -> Path:
    return store(tokens, teacher, tmp_path_factory.mktemp("cache") / "c")


def online(tokens: Path, teacher: Path, *overrides: str):
    return student_config(
        tokens, STEPS, "module=distillation", f"teacher.checkpoint={teacher}",
        "module.input_weight=0.5", "seed=1", "data.seed=0", *overrides,
    )  # fmt: skip


def as_top_k(run, **parts):
    """A run of online distillation with the loss over the same classes."""
    run.module.loss = DistillationLoss(classes=TopK(K), **parts)
    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ((), {}),
        (("module.loss.direction=reverse",), {"direction": "reverse"}),
        (("module/loss/divergence=jensen_shannon",), {"divergence": JensenShannon()}),
        (
            ("module/loss/divergence=skewed_kl", "module.loss.direction=reverse"),
            {"divergence": KLDivergence(0.1), "direction": "reverse"},
        ),
    ],
)
def test_loss_and_gradients_equal_online_top_k_distillation(
    tokens, teacher, cache, overrides, parts
):
    found = build_run(offline(tokens, cache, *overrides)).module
    expected = as_top_k(build_run(online(tokens, teacher)), **parts).module
    found.model.load_state_dict(expected.model.state_dict())
    batch = found.data.train[np.arange(32)]
    for module in (found, expected):
        module.training_step(batch, 0).backward()
    for name, value in expected.step_metrics[0].items():
        assert found.step_metrics[0][name].item() == pytest.approx(value.item(), abs=1e-5)
    largest = 0.0
    for a, b in zip(found.model.parameters(), expected.model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=0)
        largest = max(largest, b.grad.abs().max().item())
    assert largest > 1e-2  # so that 1e-5 means something


@pytest.mark.slow
def test_training_equals_online_top_k_distillation(tokens, teacher, cache, tmp_path):
    as_top_k(build_run(online(tokens, teacher, f"output_dir={tmp_path / 'online'}"))).fit()
    build_run(offline(tokens, cache, f"output_dir={tmp_path / 'offline'}")).fit()
    for name in ("train/total_loss", "train/loss", "train/kd", "val/loss"):
        expected = curve(tmp_path / "online", name)
        assert len(expected) == (STEPS if name.startswith("train") else 1)
        assert curve(tmp_path / "offline", name) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_run_resumes_exactly(tokens, cache, tmp_path, workers):
    """Eight steps in one job and in two, over more sentences than are stored: the same weights."""
    short = store_few(tokens, cache, tmp_path)
    for name, stops in {"one": [None], "two": [3, None]}.items():
        for stop in stops:
            cfg = offline(tokens, short, "resume=auto", f"data.num_workers={workers}", steps=8)
            cfg.callbacks.stop_at_step.step = stop
            train(cfg, tmp_path / name)
    one, two = (load_student(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[key], two[key]) for key in one)


def store_few(tokens: Path, cache: Path, folder: Path) -> Path:
    """The first 20 sentences of a cache, less than three batches, as a cache of their own."""
    plan = CachePlan.load(cache)
    few = replace(plan, num_sentences=20, sentences_per_file=20)
    few.save(folder / "few")
    write_file(folder / "few", few, 0, np.load(cache / plan.files[0])[:20])
    return folder / "few"


@pytest.mark.slow
def test_sentences_come_again_after_the_last_stored_one(tokens, cache, tmp_path):
    data = build_run(offline(tokens, store_few(tokens, cache, tmp_path))).module.data.train
    first, again = data[np.arange(8)], data[np.arange(40, 48)]
    assert again["next_index"] == 48
    for key in ("input_ids", "task", "teacher_ids", "teacher_log_probs"):
        assert torch.equal(first[key], again[key])


@pytest.mark.slow
def test_another_teacher_is_refused_at_resume(tokens, teacher, cache, tmp_path):
    cfg = offline(tokens, cache, steps=4)
    cfg.callbacks.stop_at_step.step = 2
    train(cfg, tmp_path / "run")
    fewer = store_few(tokens, cache, tmp_path)
    with pytest.raises(UserError, match="another order.*teacher_cache.*'sentences': 128.* 20}"):
        train(offline(tokens, fewer, "resume=auto", steps=4), tmp_path / "run")


REFUSED = {
    "data.seed=3": "seed 0 != 3): set data.seed=0, or run `delvm encode teacher=PATH`",
    "data.pairs_per_sentence=3": "images_per_sentence 4 != 6): set data.images_per_sentence=4, or",
    "data.shuffle_window_shards=1": "shards 32 != 1): set data.shuffle_window_shards=32, or run",
    "data.packing=true": "packing None != True): set data.packing=false, or run `delvm encode",
    "module=distillation": "teacher=offline is stored distributions: set "
    "module=offline_distillation",
    "data=streaming": "needs sentences that are found by their numbers, not those of "
    "StreamingSentenceDataModule: set data=sentences",
}


@pytest.mark.slow
@pytest.mark.parametrize("override", REFUSED)
def test_other_sentences_are_refused(tokens, cache, override):
    words = [*override.split(), *([f"data.path={tokens}"] if "streaming" in override else [])]
    cfg = offline(tokens, cache, *words)
    with pytest.raises(UserError) as error:
        check("train", cfg)
        build_run(cfg)
    assert REFUSED[override] in str(error.value) and "\n" not in str(error.value)


@pytest.mark.slow
def test_augmented_tokens_are_refused(tokens, cache, tmp_path):
    """As many examples in as many shards, encoded again: the order is the same."""
    shutil.copytree(tokens, tmp_path / "tokens")
    plan = Manifest.load(tmp_path / "tokens/train/pose/manifest.json")

    def ids(start: int, stop: int):
        yield np.random.default_rng(7).integers(0, V, (stop - start, 2, N))

    shutil.rmtree(tmp_path / "tokens/train/pose")
    write_tokens(tmp_path / "tokens", plan, ids)
    with pytest.raises(UserError, match=r"sentence 0 .* has other tokens .*overwrite=true"):
        build_run(offline(tmp_path / "tokens", cache))


@pytest.mark.slow
def test_module_without_stored_distributions_is_refused(tokens):
    (found,) = config_errors("train", student_config(tokens, 2, "module=offline_distillation"))
    assert found == "module=offline_distillation needs stored distributions: set teacher=offline"


@pytest.mark.slow
def test_mixture_with_packing_and_single_images_equals_the_teacher(teacher, tmp_path):
    """The teacher reads each document by itself, as it does online."""
    root = tmp_path / "tokens"
    write_ids(root)
    plan = Manifest.load(root / "train/pose/manifest.json")
    for task, k in {"single": 1, "clip": 3}.items():

        def ids(start: int, stop: int, k: int = k):
            yield np.random.default_rng(k).integers(0, V, (stop - start, k, N))

        write_tokens(root, replace(plan, task=task, images_per_example=k), ids)
    for packing in ("true", "false"):
        tasks = "{pose: 2, single: 1" + (", clip: 1}" if packing == "true" else "}")
        words = (f"packing={packing}", f"task_weights={tasks}")
        of_cache = [f"teacher_cache.{each}" for each in words]
        path = store(root, teacher, tmp_path / packing, "teacher_cache.num_sentences=24", *of_cache)
        of_data = [f"data.{each}" for each in words]
        found = build_run(offline(root, path, *of_data)).module
        expected = as_top_k(build_run(online(root, teacher, *of_data))).module
        found.model.load_state_dict(expected.model.state_dict())
        batch = found.data.train[np.arange(24)]
        losses = [module.training_step(batch, 0).item() for module in (found, expected)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.slow
def test_killed_job_continues_and_processes_share_the_work(tokens, teacher, cache, tmp_path):
    plan = replace(CachePlan.load(cache), num_sentences=50, sentences_per_file=8)
    found = SentenceDataset(SentencesConfig(str(tokens), 2), 0), load_student(teacher)
    write_cache(str(tmp_path / "one"), plan, *found, batch_size=5)
    for rank in (1, 0):  # each writes its files; the first of them was killed before its last
        write_cache(str(tmp_path / "two"), plan, *found, batch_size=8, rank=rank, world_size=2)
        if rank:
            assert len(missing_files(tmp_path / "two", plan)) == 4
            (tmp_path / "two" / plan.files[5]).unlink()
    assert missing_files(tmp_path / "two", plan) == [5]
    with pytest.raises(UserError, match="not finished, 1 of 7"):
        TeacherCache(str(tmp_path / "two"))
    write_cache(str(tmp_path / "two"), plan, *found, batch_size=8)
    one, two = (TeacherCache(str(tmp_path / name)).read(np.arange(50)) for name in ("one", "two"))
    assert (one[0] == two[0]).all() and (one[1] == two[1]).mean() > 0.999
    assert np.abs(np.exp(one[2]) - np.exp(two[2])).max() < 1e-5


@pytest.mark.slow
def test_two_processes_train_as_one_does(tokens, cache, tmp_path, root):
    train(offline(tokens, cache), tmp_path / "one")
    words = ["--standalone", "--nproc-per-node", "2", "-m", "tests.training.offline_ranks"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, str(tokens), str(cache),
         str(tmp_path)],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    for name in ("train/kd", "train/loss", "train/grad_norm"):
        expected = curve(tmp_path / "one", name)
        for strategy in ("ddp", "fsdp2"):
            assert curve(tmp_path / strategy, name) == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_cache_of_other_settings_is_kept_until_overwrite(tokens, teacher, cache, tmp_path):
    few = ["teacher_cache.num_sentences=9"]
    path = store(tokens, teacher, tmp_path / "c", *few)
    before = {each.name: each.read_bytes() for each in path.iterdir()}
    store(tokens, teacher, path, *few)
    with pytest.raises(UserError, match="made with top_k=6, requested is top_k=5: set overwrite="):
        store(tokens, teacher, path, *few, "teacher_cache.top_k=5")
    assert before == {each.name: each.read_bytes() for each in path.iterdir()}
    store(tokens, teacher, path, *few, "teacher_cache.top_k=5", "overwrite=true")
    assert TeacherCache(str(path)).plan.top_k == 5
    assert not before.keys() & {each.name for each in path.iterdir()} - {"manifest.json"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_seq_len": 8}, "a sentence has 16 tokens, the teacher's max_seq_len is 8"),
        ({"vocab_size": 2 * V}, rf"vocab_size {2 * V} \(teacher\) != {V} \(ids in"),
        ({"fingerprint": "e" * 16}, "trained on ids of tokenizer e{16}, output_dir=.* f{16}"),
        ({"top_k": V}, f"teacher_cache.top_k={V} is not from 1 to {V - 1}"),
    ],
)
def test_teacher_that_does_not_fit_is_refused(tokens, tmp_path, change, message):
    sizes = {"vocab_size": V, "max_seq_len": 32} | change
    net = TransformerConfig(sizes["vocab_size"], 32, 1, 2, max_seq_len=sizes["max_seq_len"])
    teacher = Transformer(replace(net, codebook_dim=8))
    teacher.tokenizer_fingerprint = change.get("fingerprint", "f" * 16)
    save_model(teacher, tmp_path / "teacher")
    top_k = f"teacher_cache.top_k={change.get('top_k', 3)}"
    with pytest.raises(UserError, match=message):
        store(tokens, tmp_path / "teacher", tmp_path / "c", top_k)
    assert not (tmp_path / "c").exists()


@pytest.mark.slow
def test_teacher_that_is_not_there_names_its_override(tokens, tmp_path):
    with pytest.raises(UserError, match="student not found: nowhere .* set teacher=PATH$"):
        store(tokens, Path("nowhere"), tmp_path / "c")
    with pytest.raises(UserError, match="student not found: nowhere .*: set teacher.checkpoint="):
        build_run(online(tokens, Path("nowhere")))


def test_counts_below_one_name_their_override():
    found = compose("encode", ["teacher=x", "teacher_cache.top_k=0"]).teacher_cache.validate()
    assert found == ["top_k=0 is below 1: set it to 1 or more"]
