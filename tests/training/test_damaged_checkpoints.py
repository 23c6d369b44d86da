"""A checkpoint whose values have another form is refused in one line when a run resumes from it."""

import copy

import pytest
import torch

from delvm.errors import UserError
from tests.training.runs import student_config, train

PARTS = (
    "optimizer_states", "lr_schedulers", "callbacks", "loops", "global_step", "epoch",
    "pytorch-lightning_version", "SentenceDataModule", "delvm", "state_dict",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tokens, tmp_path_factory):
    """A finished run of two steps: its directory, and the content of its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    train(student_config(tokens, 2), folder)
    path = folder / "checkpoints" / "step=000002.ckpt"
    return folder, path, torch.load(path, weights_only=True)


def refused(tokens, run, change) -> str:
    """The message that resuming from a changed checkpoint ends with."""
    folder, path, good = run
    changed = copy.deepcopy(good)
    change(changed)
    torch.save(changed, path)
    config = student_config(tokens, 4)
    config.resume = str(path)
    with pytest.raises(UserError) as caught:
        train(config, folder)
    assert "\n" not in str(caught.value) and "step=000002.ckpt" in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("value", ["missing", None, "text", []])
@pytest.mark.parametrize("part", PARTS)
def test_parts_of_another_type_are_refused(tokens, run, part, value):
    if value == [] and part == "lr_schedulers":
        pytest.skip("a run may have none")

    def change(checkpoint):
        del checkpoint[part]
        if value != "missing":
            checkpoint[part] = value

    refused(tokens, run, change)


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    [
        5,
        torch.zeros(3),
        torch.zeros(16, 32, dtype=torch.int8),
        torch.zeros(16, 32).to(torch.cfloat),
    ],
    ids=["integer", "shape", "int8", "complex"],
)
def test_weights_of_another_form_are_refused(tokens, run, value):
    def change(checkpoint):
        checkpoint["state_dict"]["model.head.weight"] = value

    assert "model.head.weight" in refused(tokens, run, change)


@pytest.mark.parametrize("value", ["text", None, torch.zeros(3)], ids=str)
@pytest.mark.slow
def test_optimizer_states_of_another_form_are_refused(tokens, run, value):
    def change(checkpoint):
        first = next(iter(checkpoint["optimizer_states"][0]["state"].values()))
        first["exp_avg"] = value

    refused(tokens, run, change)


def test_no_parameter_groups_are_refused(tokens, run):
    def change(checkpoint):
        checkpoint["optimizer_states"][0]["param_groups"] = []

    assert "is damaged" in refused(tokens, run, change)
