"""Runs that go on where they were, or begin with the weights of others."""

import pytest
import torch

from delvm.errors import UserError
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import save_model
from delvm.models.transformer import TransformerConfig
from delvm.training.config import (
    OptimConfig,
    StudentConfig,
)
from delvm.training.fit import build, train
from delvm.training.student import StudentTraining
from tests.training.runs import V, curve, student_config, tokenizer_config


def test_resume_continues_the_steps(tokens, tmp_path):
    train(student_config(tokens, steps=2), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert load_student(tmp_path / "checkpoints" / "last.ckpt").config.dim == 32
    train(student_config(tokens, steps=5, resume="auto"), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    assert len(curve(tmp_path, "train/loss")) == 5  # the first job's stay in the table


@pytest.mark.parametrize("workers", [0, 2])
def test_a_resumed_run_reads_on_where_it_was(tokens, tmp_path, workers):
    """Eight steps in one go, and in two jobs: the same weights to the last bit."""
    train(student_config(tokens, steps=8), tmp_path / "whole")
    parted = student_config(tokens, steps=8)
    parted.data.num_workers, parted.trainer.stop_at, parted.trainer.val_every = workers, 3, 3
    train(parted, tmp_path / "parted")
    parted.trainer.stop_at, parted.resume = None, "auto"
    train(parted, tmp_path / "parted")
    whole, again = (load_student(tmp_path / name).state_dict() for name in ("whole", "parted"))
    assert all(torch.equal(whole[key], again[key]) for key in whole)


def test_a_tokenizer_reads_on_where_it_was(pictures, tmp_path):
    seen = {}
    for name, stops in {"whole": [None], "parted": [3, None]}.items():
        for stop in stops:
            config = tokenizer_config(pictures, steps=6)
            config.trainer.stop_at, config.resume = stop, "auto"
            train(config, tmp_path / name)
        last = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        seen[name] = last["PictureData"], load_tokenizer(tmp_path / name).codebook
    assert seen["whole"][0] == seen["parted"][0] and seen["whole"][0]["position"] == 6 * 8
    assert torch.equal(seen["whole"][1], seen["parted"][1])


def test_another_order_of_the_data_is_refused(tokens, tmp_path):
    train(student_config(tokens, steps=2), tmp_path)
    with pytest.raises(UserError, match="another order.*seed 0 != 1.*start=PATH"):
        train(student_config(tokens, steps=4, resume="auto", seed=1), tmp_path)


def test_what_cannot_be_resumed_is_refused(tokens, tmp_path):
    train(student_config(tokens, steps=2), tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    other = tmp_path / "other.ckpt"
    other.write_bytes(b"no checkpoint")
    weights = tmp_path / "weights.ckpt"
    torch.save({"state_dict": {}}, weights)
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(last.read_bytes()[:-2000])
    for file, complaint in (
        (other, "cannot be read"),
        (weights, "no checkpoint of `delvm train`"),
        (torn, "cannot be read.*damaged"),
    ):
        with pytest.raises(UserError, match=complaint):
            train(student_config(tokens, resume=str(file)), tmp_path / "run")
    wide = StudentConfig(TransformerConfig(V, 64, 2, 2, max_seq_len=32, codebook_dim=8))
    with pytest.raises(UserError, match=r"another network.*dim 32 != 64"):
        train(student_config(tokens, resume=str(last), student=wide), tmp_path / "run")
    # what a later version adds to the networks is not in a checkpoint, and no difference
    found = torch.load(last, weights_only=True)
    del found["delvm"]["config"]["rope_base"]
    torch.save(found, last)
    train(student_config(tokens, resume=str(last)), tmp_path / "run")


def test_a_discriminator_cannot_be_added_to_a_run(pictures, tmp_path):
    train(tokenizer_config(pictures, steps=2), tmp_path)
    config = tokenizer_config(pictures, steps=3, adversarial=0.5, discriminator_layers=1)
    config.resume = "auto"
    with pytest.raises(UserError, match=r"another network than this run's \(adversary\)"):
        train(config, tmp_path)


def test_a_run_can_begin_with_trained_weights(tokens, tmp_path):
    first = train(student_config(tokens, steps=30), tmp_path / "first")
    still = OptimConfig(lr=1e-12, weight_decay=0.0)
    second = train(
        student_config(tokens, start=str(first), seed=1, optim=still), tmp_path / "second"
    )
    a, b = (load_student(path).state_dict() for path in (first, second))
    assert all(torch.allclose(a[key], b[key], atol=1e-9) for key in a)


def test_a_tokenizer_that_begins_with_weights_keeps_its_codes(pictures, tmp_path):
    first = train(tokenizer_config(pictures), tmp_path / "first")
    config = tokenizer_config(pictures, steps=1)
    config.start, config.optim = str(first), OptimConfig(lr=1e-12, weight_decay=0.0)
    config.data.batch_size = 1  # one flat picture uses few codes
    second = train(config, tmp_path / "second")
    old, new = (load_tokenizer(path) for path in (first, second))
    assert torch.allclose(old.encoder.conv_in.weight, new.encoder.conv_in.weight, atol=1e-9)
    # those that were used moved a little way to their features, the others not at all
    moved = (old.codebook - new.codebook).norm(dim=1)
    spread = (old.codebook - old.codebook.mean(0)).norm(dim=1).mean()
    assert moved.max() < 0.5 * spread and (moved == 0).any()


def test_a_resumed_run_has_weights_of_its_own(tokens, tmp_path):
    train(student_config(tokens, steps=2), tmp_path)
    train(student_config(tokens, steps=3, resume="auto", start="nowhere"), tmp_path)


def test_weights_to_begin_with_must_fit(tokens, tmp_path):
    first = train(student_config(tokens), tmp_path / "first")
    narrow = TransformerConfig(V, 16, 2, 2, max_seq_len=32, codebook_dim=8)
    config = student_config(tokens, start=str(first), student=StudentConfig(narrow))
    with pytest.raises(UserError, match=r"dim 32 .* != 16 .*set student.net.dim=32"):
        build(config)
    student = load_student(first)
    student.tokenizer_fingerprint = "0" * 16
    save_model(student, tmp_path / "other")
    with pytest.raises(UserError, match="ids of tokenizer 0{16}"):
        build(student_config(tokens, start=str(tmp_path / "other")))


def test_an_averaged_run_goes_on_from_its_own_weights(pictures, tmp_path):
    """The average is exported; the run itself resumes from what it had learnt."""
    made = train(tokenizer_config(pictures, 3, average=0.5), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    name = "decoder.conv_out.weight"
    exported = load_tokenizer(made).state_dict()[name]
    assert torch.equal(saved["state_dict"][f"model.{name}"], exported)
    assert not torch.equal(saved["current_model_state"][f"model.{name}"], exported)


def test_a_run_in_two_jobs_ends_where_one_would(tokens, tmp_path):
    config = student_config(tokens, steps=6)
    config.trainer.stop_at = 4
    train(config, tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    rate = saved["lr_schedulers"][0]["_last_lr"][0]
    train(student_config(tokens, steps=6, resume="auto"), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert saved["lr_schedulers"][0]["_last_lr"][0] < rate  # the schedule went on


def test_a_run_that_breaks_goes_on_from_its_last_validation(tokens, tmp_path, monkeypatch):
    config = student_config(tokens, steps=8)
    config.trainer.val_every = 2
    config.optim.lr = 1e-30  # never better than at first: the best checkpoint stays the oldest
    plain = StudentTraining.training_step

    def breaks(self, batch, index):
        if self.global_step == 7:
            raise RuntimeError("power cut")
        return plain(self, batch, index)

    monkeypatch.setattr(StudentTraining, "training_step", breaks)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6


def test_a_run_is_not_mixed_with_another(tokens, tmp_path):
    train(student_config(tokens), tmp_path)
    before = (tmp_path / "student" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="overwrite=true"):
        train(student_config(tokens, seed=1), tmp_path)
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == before
    train(student_config(tokens, seed=1, overwrite=True), tmp_path)
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step=000003.ckpt",
    ]
    assert (tmp_path / "student" / "model.safetensors").read_bytes() != before
