"""A moving average of a student's weights: validated, exported, and exact over several jobs."""

import pytest
import torch

import delvm
from delvm.configs.validate import config_errors
from delvm.interop.load import load_student
from tests.training.runs import curve, student_config, train

EMA = ("callbacks=[default,weight_ema]", "callbacks.weight_ema.decay=0.5")
EVERY = "callbacks.checkpoint.every_n_train_steps=1"


def average_of(folder, steps, decay=0.5):
    """The average, computed from the trained weights after each step."""
    average = None
    for step in range(1, steps + 1):
        path = folder / "checkpoints" / f"step={step:06d}.ckpt"
        saved = torch.load(path, weights_only=True)["current_model_state"]
        weights = {k.removeprefix("model."): v for k, v in saved.items()}
        if average is None:
            average = {k: v.clone() for k, v in weights.items()}
        else:
            average = {k: decay * average[k] + (1 - decay) * v for k, v in weights.items()}
    return average


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp2", "hsdp", "fsdp"])
def test_sharded_strategies_are_refused(tokens, strategy):
    words = [*EMA, f"strategy={strategy}", f"data.path={tokens}"]
    found = config_errors("train", delvm.compose("train", words))
    assert any("callbacks.weight_ema averages complete weights" in each for each in found)


@pytest.mark.slow
def test_average_of_a_student_is_exported_and_exact_over_two_jobs(tokens, tmp_path):
    exported = []
    for name, stops in {"one": [None], "two": [2, None]}.items():
        for stop in stops:
            config = student_config(
                tokens, 4, *EMA, EVERY, "resume=auto", "callbacks.checkpoint.keep_latest_k=9"
            )
            config.callbacks.stop_at_step.step = stop
            train(config, tmp_path / name)
        exported.append(load_student(tmp_path / name).state_dict())
    assert all(torch.equal(exported[0][key], exported[1][key]) for key in exported[0])
    saved = torch.load(tmp_path / "one" / "checkpoints" / "last.ckpt", weights_only=True)
    trained = saved["current_model_state"]
    assert not torch.equal(trained["model.head.weight"], exported[0]["head.weight"])
    for key, value in average_of(tmp_path / "one", 4).items():
        torch.testing.assert_close(exported[0][key], value)
    assert curve(tmp_path / "one", "val/loss") == curve(tmp_path / "two", "val/loss")[-1:]


@pytest.mark.slow
def test_average_of_a_distilled_student_is_exported(tokens, tmp_path):
    train(student_config(tokens, 2), tmp_path / "teacher")
    words = ("module=distillation", f"teacher.checkpoint={tmp_path}/teacher/student")
    config = student_config(tokens, 3, *words, *EMA, EVERY, "callbacks.checkpoint.keep_latest_k=9")
    exported = load_student(train(config, tmp_path / "run")).state_dict()
    for key, value in average_of(tmp_path / "run", 3).items():
        torch.testing.assert_close(exported[key], value)
    assert not any("teacher" in key for key in exported)
