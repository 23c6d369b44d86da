"""Two processes do what one does under every strategy, and resume each other's runs."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.plugins import FSDPPrecision, Precision
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import ShardingStrategy

from delvm.commands.instantiate import build_run
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, writer
from delvm.errors import UserError
from delvm.interop import sharded_checkpoint as sharded
from delvm.interop.load import load_student
from delvm.training import checkpoint_io, strategies
from delvm.training.run.memory import estimate_memory
from tests.training.ranks import CLIP, SHARDED, SINGLE, STOP, TIED, config
from tests.training.runs import N, V, curve, train

EXACT = {"abs": 1e-5, "rel": 0}


@pytest.fixture(scope="module")
def mixture(tmp_path_factory) -> Path:
    """Token shards of pairs and of clips of three, enough of either."""
    root = tmp_path_factory.mktemp("mixture")
    codebooks.write_codebook(root, torch.randn(V, 8, generator=torch.manual_seed(0)), "f" * 16)
    for task, num_images in (("pose", 2), ("clips", 3)):
        for split, count in (("train", 192), ("val", 9)):  # 9 do not divide evenly
            plan = manifest.plan_tokens(
                manifest.plan_images(split, task, source="s", seed=0, image_size=8),
                count, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16,
            )  # fmt: skip
            plan.images_per_example = num_images

            def ids(start, stop, k=num_images):
                first = np.random.default_rng(start).integers(0, V, (stop - start, 1, N))
                yield np.concatenate([(first + i) % V for i in range(k)], axis=1)

            writer.write_tokens(root, plan, ids)
    return root


@pytest.fixture(scope="module")
def runs(mixture, tmp_path_factory, root) -> Path:
    """All runs in one directory: those of two processes from `ranks`, those of one from here."""
    folder = tmp_path_factory.mktemp("runs")
    stop = f"callbacks.stop_at_step.step={STOP}"
    train(config(mixture, SINGLE, 1, 20, stop), folder / "one_two")
    words = ["--standalone", "--nproc-per-node", "2", "-m", "tests.training.ranks"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words, str(mixture), str(folder)],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stderr.count("train student: 20/20") == 5, "one process reports"
    train(config(mixture, SINGLE, 1), folder / "one")
    train(config(mixture, SINGLE, 1, 4, *TIED), folder / "one_tied")
    bf16 = "trainer.precision=bf16-mixed"
    train(config(mixture, SINGLE, 1, 4, bf16), folder / "one_bf16")
    train(config(mixture, SINGLE, 1, 20, "resume=auto"), folder / "two_one")
    return folder


def last_steps(folder: Path, name: str, steps: int) -> list[float]:
    return curve(folder, name)[-steps:]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SHARDED)
@pytest.mark.parametrize(
    "metric", ["train/loss", "train/grad_norm", "val/loss", "val/clips/target_acc", "val/pose/ppl"]
)
def test_two_processes_log_what_one_does(runs, strategy, metric):
    expected = curve(runs / "one", metric)
    assert len(expected) == (20 if metric.startswith("train") else 2)
    assert curve(runs / strategy, metric) == pytest.approx(expected, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SHARDED)
def test_two_processes_learn_what_one_does(runs, strategy):
    distributed, single = (load_student(runs / name) for name in (strategy, "one"))
    assert distributed.tokenizer_fingerprint == "f" * 16
    ids = torch.randint(0, V, (4, 24), generator=torch.manual_seed(0))
    torch.testing.assert_close(distributed(ids), single(ids), atol=1e-5, rtol=0)
    for name, weight in single.state_dict().items():
        torch.testing.assert_close(distributed.state_dict()[name], weight, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_tied_head_gets_the_gradients_of_both_uses(runs):
    for metric in ("train/loss", "train/grad_norm"):
        expected = curve(runs / "one_tied", metric)
        assert curve(runs / "tied", metric) == pytest.approx(expected, **EXACT)


@pytest.mark.slow
def test_bfloat16_param_dtype_trains_as_well(runs):
    expected = curve(runs / "one_bf16", "train/loss")
    found = curve(runs / "bf16", "train/loss")
    assert found == pytest.approx(expected, abs=2e-3) and found != expected


@pytest.mark.slow
def test_gradients_are_clipped_by_the_global_norm_on_every_rank(runs):
    first, second = (json.loads((runs / f"norms_{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    for name in SHARDED:
        logged, after = np.array(first[name]).T
        assert len(logged) == 20 and logged.min() > 2 * CLIP
        assert after == pytest.approx(CLIP, rel=1e-4)
        assert logged.tolist() == pytest.approx(curve(runs / name, "train/grad_norm"))


@pytest.mark.slow
def test_each_process_holds_its_shard_and_no_more(runs, mixture):
    net = build_run(config(mixture, SINGLE, 1)).module.model.config
    for name in SHARDED:
        shard = 2 if name == "fsdp2" else 1
        estimate = estimate_memory(net, "32-true", 4, sharded=name != "ddp", shard_size=shard)
        for rank in (0, 1):
            states, gradients = json.loads((runs / f"held_{rank}.json").read_text())[name]
            assert states == pytest.approx(estimate.optimizer, rel=0.01)
            assert gradients == pytest.approx(estimate.gradients, rel=0.01)


@pytest.mark.slow
def test_no_process_builds_the_complete_student(mixture):
    for name, strategy in {"single": SINGLE, **SHARDED}.items():
        run = build_run(config(mixture, strategy, 1 if name == "single" else 2))
        empty = {weight.is_meta for weight in run.module.model.blocks.parameters()}
        assert empty == {name in ("fsdp2", "hsdp")}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two_two", "two_one", "one_two"])
def test_run_resumes_on_any_number_of_processes(runs, name):
    """Seven steps by one or two processes, thirteen by one or two: the same batches and steps."""
    left = 20 - STOP
    for metric in ("train/loss", "train/grad_norm"):
        expected = last_steps(runs / "one", metric, left)
        assert last_steps(runs / name, metric, left) == pytest.approx(expected, **EXACT)
    (expected,) = last_steps(runs / "one", "val/loss", 1)
    assert last_steps(runs / name, "val/loss", 1) == [pytest.approx(expected, **EXACT)]
    assert len(curve(runs / name, "train/loss")) == 20  # no step is done twice, none left out


@pytest.mark.slow
def test_run_leaves_checkpoints_and_nothing_else(runs):
    for name in ("fsdp2", "two_two", "two_one", "one_two"):
        found = {path.name for path in (runs / name / "checkpoints").iterdir()}
        assert "last.ckpt" in found and all(each.endswith(".ckpt") for each in found), found
        assert not any(each.startswith(".") for each in found), found
    parts = {path.name for path in (runs / "fsdp2" / "checkpoints" / "last.ckpt").iterdir()}
    assert parts == {".metadata", "__0_0.distcp", "__1_0.distcp", "meta.pt"}
    # What the other kind had written was replaced.
    assert (runs / "one_two" / "checkpoints" / "last.ckpt").is_dir()
    assert (runs / "two_one" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_sharded_checkpoint_loads_as_a_student(runs):
    exported = load_student(runs / "fsdp2").state_dict()
    read = load_student(runs / "fsdp2" / "checkpoints" / "last.ckpt")
    assert read.tokenizer_fingerprint == "f" * 16
    assert all(torch.equal(read.state_dict()[key], exported[key]) for key in exported)


@pytest.mark.slow
def test_train_command_under_torchrun(mixture, tmp_path, root):
    words = ["--standalone", "--nproc-per-node", "2", "-m", "delvm", "train", "module=student",
             "student=tiny", "tokenizer=shapes_f8_32", "data=sentences", f"data.path={mixture}",
             f"output_dir={tmp_path / 'run'}", "data.batch_size=2", "data.images_per_sentence=6",
             f"tokenizer.net.num_embeddings={V}", "tokenizer.net.quantized_embed_dim=8",
             "tokenizer.net.resolution=8", "tokenizer.net.channel_mult=[1]",
             "student.net.n_layers=1", "trainer.max_steps=2", "trainer.devices=2",
             "strategy=fsdp2"]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words], cwd=root, capture_output=True,
        text=True, timeout=120, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stderr.count("train student: 2/2") == 1
    assert load_student(tmp_path / "run").config.n_layers == 1


@pytest.mark.slow
def test_exit_process_flushes_and_keeps_the_exit_code(tmp_path):
    script = """
import sys
from torch import distributed
from delvm.training.strategies import exit_process
exit_process(5)  # nobody else is there yet
print("alone")
distributed.init_process_group("gloo", f"file://{sys.argv[1]}", rank=0, world_size=1)
print("flushed", end="")
exit_process(3)
print("never")
"""
    command = [sys.executable, "-c", script, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (3, "alone\nflushed")


def test_gradients_are_unscaled_before_clipping():
    """As under 16-mixed, where a fused optimizer would unscale only in its step."""
    weight = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW([weight], fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler), strategy=SimpleNamespace(model=None)
    )
    norm = strategies.clip_grad_norm(trainer, optimizer, 1.0)
    assert norm.item() == pytest.approx(5.0)
    assert weight.grad is not None and weight.grad.tolist() == pytest.approx([0.6, 0.8])
    scaler.step(optimizer)
    assert weight.tolist() == pytest.approx([-1e-3, -1e-3], rel=1e-3)  # a step was taken


def without_processes(strategy, monkeypatch, nodes, devices, plugin):
    """A strategy of so many devices, after all that it sets up before processes connect."""
    base = FSDPStrategy if isinstance(strategy, FSDPStrategy) else ModelParallelStrategy
    monkeypatch.setattr(base, "setup_environment", lambda self: None)
    strategy.num_nodes, strategy.parallel_devices = nodes, [torch.device("cpu")] * devices
    strategy.precision_plugin = plugin
    strategy.setup_environment()
    return strategy


@pytest.mark.parametrize(
    ("kind", "shard_size", "mesh"),
    [
        (strategies.FSDP2Strategy, None, (1, 8)),
        (strategies.FSDP2Strategy, 2, (4, 2)),
        (strategies.HSDPStrategy, None, (2, 4)),
        (strategies.HSDPStrategy, 2, (4, 2)),
    ],
)
def test_fsdp2_mesh_is_replicas_by_shard_size(kind, shard_size, mesh, monkeypatch):
    made = without_processes(kind(shard_size), monkeypatch, 2, 4, Precision())
    assert (made._data_parallel_size, made._tensor_parallel_size) == mesh


@pytest.mark.parametrize(
    ("shard_size", "sharding", "mesh"),
    [(None, ShardingStrategy.FULL_SHARD, None), (4, ShardingStrategy.HYBRID_SHARD, (2, 4))],
)
@pytest.mark.parametrize(
    ("param_dtype", "precision", "dtype"),
    [
        ("auto", "bf16-mixed", torch.bfloat16),
        ("auto", "32-true", None),
        ("float32", "bf16-mixed", None),
        ("bfloat16", "32-true", torch.bfloat16),
    ],
)
def test_fsdp1_takes_mesh_and_dtype_from_the_trainer(
    shard_size, sharding, mesh, param_dtype, precision, dtype, monkeypatch
):
    made = strategies.FSDP1Strategy(shard_size, param_dtype)
    made = without_processes(made, monkeypatch, 2, 4, FSDPPrecision(precision))
    assert made.sharding_strategy is sharding and made.kwargs.get("device_mesh") == mesh
    assert made.mixed_precision_config.param_dtype is dtype
    assert made.mixed_precision_config.reduce_dtype is torch.float32


@pytest.mark.parametrize("shard_size", [3, -1])
def test_shard_size_must_divide_the_devices(shard_size, monkeypatch):
    with pytest.raises(UserError, match=f"shard_size={shard_size} does not divide the 8 devices"):
        without_processes(strategies.FSDP2Strategy(shard_size), monkeypatch, 2, 4, Precision())


@pytest.mark.parametrize("size", [0.5, 5.0, float("nan"), float("inf")])
def test_clip_grads_equals_torch(size):
    """For a norm below the limit, above it, and a non-finite one."""
    weights = [nn.Parameter(torch.zeros(3)) for _ in range(4)]
    for weight in weights:
        weight.grad = torch.tensor([0.0, size, 0.0]) / 2
    actual, expected = weights[:2], weights[2:]
    assert alike(strategies.clip_grads_(actual, 1.0), nn.utils.clip_grad_norm_(expected, 1.0))
    for a, b in zip(actual, expected, strict=True):
        assert a.grad is not None and b.grad is not None and alike(a.grad, b.grad)


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two results are the same, with NaN in the same positions."""
    return torch.allclose(a, b, rtol=1e-6, atol=0, equal_nan=True)


def test_checkpoint_replaces_atomically(tmp_path):
    """A directory replaces a directory or a file, and a file a directory."""
    path, part = tmp_path / "last.ckpt", tmp_path / ".last.ckpt.part"
    for number, folder in enumerate((True, True, False, False, True)):
        if folder:
            part.mkdir()
        (part / "number" if folder else part).write_text(str(number))
        checkpoint_io._atomic_replace(part, path)
        assert (path / "number" if folder else path).read_text() == str(number)
        assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_failed_checkpoint_keeps_the_last_one(tmp_path, monkeypatch):
    strategy, path = strategies.FSDP2Strategy(), tmp_path / "last.ckpt"

    def save(number: float) -> None:
        state = {"state_dict": {"model.a": torch.full((3,), number)}, "global_step": number}
        strategy.save_checkpoint(state, path)

    save(1.0)
    write = checkpoint_io.state_dict_saver.save

    def full(state: dict[str, object], **rest: object) -> None:
        write(state, **rest)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_io.state_dict_saver, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(2.0)
    assert sharded.read(path)["state_dict"]["model.a"].tolist() == [1.0] * 3
    assert sharded.read_metadata(path) == {"global_step": 1.0}
    assert [each.name for each in tmp_path.iterdir()] == ["last.ckpt"]
