"""Runs that train an adapter of a pretrained student."""

import os
import subprocess
import sys

import pytest
import torch

from delvm.commands.instantiate import build_run
from delvm.configs.validate import config_errors
from delvm.errors import UserError
from delvm.interop.load import load_student
from delvm.models.lora import merge_adapters
from tests.training.adapter_ranks import STRATEGIES, adapter
from tests.training.runs import curve, student_config, train


@pytest.fixture(scope="module")
def pretrained(tokens, tmp_path_factory):
    return train(student_config(tokens, 2), tmp_path_factory.mktemp("pretrained"))


@pytest.mark.slow
def test_adapter_is_trained_saved_resumed_and_merged(tokens, pretrained, tmp_path):
    whole = build_run(adapter(tokens, pretrained, 6, f"output_dir={tmp_path / 'a'}"))
    exported = load_student(whole.fit())
    model, before = whole.module.model, load_student(pretrained)
    assert exported.state_dict().keys() == before.state_dict().keys()
    ids = torch.randint(16, (3, 16))
    with torch.no_grad():
        torch.testing.assert_close(exported(ids), model.eval()(ids), atol=1e-6, rtol=1e-6)
        assert not torch.allclose(exported(ids), before(ids), atol=1e-3)
    state = model.state_dict()
    assert all(torch.equal(each, state[name]) for name, each in before.state_dict().items())
    groups = whole.trainer.optimizers[0].param_groups
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for name, p in model.named_parameters() if "lora" in name}

    stop = "callbacks.stop_at_step.step=3"
    train(adapter(tokens, pretrained, 6, stop), tmp_path / "b")
    last = tmp_path / "b" / "checkpoints" / "last.ckpt"
    stored = torch.load(last, weights_only=True)["state_dict"]
    merged = merge_adapters({k.removeprefix("model."): v for k, v in stored.items()})
    loaded = load_student(last).state_dict()
    assert all(torch.equal(each, merged[name]) for name, each in loaded.items())
    again = "init_from=nowhere"  # a resumed run has its own weights
    train(adapter(tokens, pretrained, 6, "resume=auto", again), tmp_path / "b")
    resumed = load_student(tmp_path / "b").state_dict()
    assert all(torch.equal(each, resumed[name]) for name, each in exported.state_dict().items())
    with pytest.raises(UserError, match="another network"):
        train(student_config(tokens, 6, "resume=auto"), tmp_path / "b")
    with pytest.raises(UserError, match=r"lora_a \(8, 32\).* != \(2, 32\)"):
        rank = "module.adapter.rank=2"
        train(adapter(tokens, pretrained, 6, "resume=auto", rank), tmp_path / "b")


@pytest.mark.slow
def test_adapter_without_pretrained_weights_or_under_fsdp1_is_refused(tokens, pretrained):
    errors = config_errors("train", student_config(tokens, 2, "module/adapter=lora"))
    assert errors == ["module.adapter adapts pretrained weights: set init_from=PATH"]
    errors = config_errors("train", adapter(tokens, pretrained, 2, "strategy=fsdp"))
    assert "module.adapter is not for strategy=fsdp: set strategy=fsdp2" in errors


@pytest.mark.slow
def test_two_processes_train_adapters_and_token_orders(tokens, pretrained, tmp_path, root):
    words = ["--standalone", "--nproc-per-node", "2", "-m", "tests.training.adapter_ranks"]
    words += [str(tokens), str(pretrained), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *words],
        cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-5000:]
    train(adapter(tokens, pretrained, 4), tmp_path / "one")
    one = load_student(tmp_path / "one").state_dict()
    for strategy in STRATEGIES:
        for metric in ("train/loss", "train/grad_norm"):
            expected = curve(tmp_path / "one", metric)
            assert curve(tmp_path / strategy, metric) == pytest.approx(expected, abs=1e-5, rel=1e-5)
        two = load_student(tmp_path / strategy).state_dict()
        assert all(torch.allclose(each, two[name], atol=1e-4) for name, each in one.items())
        assert curve(tmp_path / f"{strategy}_order", "train/permuted") == [1, 1, 0, 0]
        load_student(tmp_path / f"{strategy}_order")
