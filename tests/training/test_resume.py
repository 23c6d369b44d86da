"""Runs that resume, and runs that start from pretrained weights."""

import pytest
import torch

from delvm.commands.instantiate import build_run
from delvm.errors import UserError
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import save_model
from delvm.training.run.init_weights import init_errors
from delvm.training.student import StudentModule
from tests.training.runs import curve, student_config, tokenizer_config, train

EMA = ("callbacks=[default,weight_ema]", "callbacks.weight_ema.decay=0.5")


@pytest.mark.slow
def test_resume_continues_the_step_count(tokens, tmp_path):
    train(student_config(tokens, 2), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert load_student(tmp_path / "checkpoints" / "last.ckpt").config.dim == 32
    train(student_config(tokens, 5, "resume=auto"), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    assert len(curve(tmp_path, "train/loss")) == 5  # the first job's rows stay in the table


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_resumed_run_continues_its_data(tokens, tmp_path, workers):
    """Eight steps in one job and in two: bit-identical weights."""
    train(student_config(tokens, 8), tmp_path / "one")
    two = student_config(tokens, 8, f"data.num_workers={workers}", "trainer.val_check_interval=3")
    two.callbacks.stop_at_step.step = 3
    train(two, tmp_path / "two")
    two.callbacks.stop_at_step.step, two.resume = None, "auto"
    train(two, tmp_path / "two")
    one, resumed = (load_student(tmp_path / name).state_dict() for name in ("one", "two"))
    assert all(torch.equal(one[key], resumed[key]) for key in one)


@pytest.mark.slow
def test_resumed_tokenizer_run_continues_its_data(images, tmp_path):
    seen = {}
    for name, stops in {"one": [None], "two": [3, None]}.items():
        for stop in stops:
            config = tokenizer_config(images, 6, "resume=auto")
            config.callbacks.stop_at_step.step = stop
            train(config, tmp_path / name)
        last = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        seen[name] = last["ImageDataModule"], load_tokenizer(tmp_path / name).codebook
    assert seen["one"][0] == seen["two"][0] and seen["one"][0]["position"] == 6 * 8
    assert torch.equal(seen["one"][1], seen["two"][1])


@pytest.mark.slow
def test_another_data_order_is_refused(tokens, tmp_path):
    train(student_config(tokens, 2), tmp_path)
    with pytest.raises(UserError, match="another order.*seed 0 != 1.*init_from=PATH"):
        train(student_config(tokens, 4, "resume=auto", "seed=1"), tmp_path)


@pytest.mark.slow
def test_checkpoints_of_other_runs_are_refused(tokens, tmp_path):
    train(student_config(tokens, 2), tmp_path / "run")
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    other = tmp_path / "other.ckpt"
    other.write_bytes(b"no checkpoint")
    weights = tmp_path / "weights.ckpt"
    torch.save({"state_dict": {}}, weights)
    torn = tmp_path / "torn.ckpt"
    torn.write_bytes(last.read_bytes()[:-2000])
    for file, complaint in (
        (other, "cannot be read"),
        (weights, "not a checkpoint of `delvm train`"),
        (torn, "cannot be read.*damaged"),
    ):
        with pytest.raises(UserError, match=complaint):
            train(student_config(tokens, 3, f"resume={file}"), tmp_path / "run")
    with pytest.raises(UserError, match=r"another network.*dim 32 != 64"):
        train(student_config(tokens, 3, f"resume={last}", "student.net.dim=64"), tmp_path / "run")
    # A key that a later version adds is not in an old checkpoint, which is not a mismatch.
    found = torch.load(last, weights_only=True)
    del found["delvm"]["config"]["rope_base"]
    torch.save(found, last)
    train(student_config(tokens, 3, f"resume={last}"), tmp_path / "run")


@pytest.mark.slow
def test_discriminator_cannot_be_added_to_a_run(images, tmp_path):
    train(tokenizer_config(images, 2), tmp_path)
    disc = ("module.disc_weight=0.5", "module.disc_num_layers=1")
    config = tokenizer_config(images, 3, *disc, "resume=auto")
    with pytest.raises(UserError, match=r"another network than this run's \(discriminator\)"):
        train(config, tmp_path)


@pytest.mark.slow
def test_run_starts_from_pretrained_weights(tokens, tmp_path):
    first = train(student_config(tokens, 30), tmp_path / "first")
    frozen = ("optimizer.lr=1e-12", "optimizer.weight_decay=0.0", f"init_from={first}")
    second = train(student_config(tokens, 3, *frozen, "seed=1"), tmp_path / "second")
    a, b = (load_student(path).state_dict() for path in (first, second))
    assert all(torch.allclose(a[key], b[key], atol=1e-9) for key in a)


@pytest.mark.slow
def test_tokenizer_from_pretrained_weights_keeps_its_codes(images, tmp_path):
    first = train(tokenizer_config(images), tmp_path / "first")
    frozen = ("optimizer.lr=1e-12", "optimizer.weight_decay=0.0", f"init_from={first}")
    # One flat image uses few codes.
    config = tokenizer_config(images, 1, *frozen, "data.batch_size=1")
    second = train(config, tmp_path / "second")
    old, new = (load_tokenizer(path) for path in (first, second))
    assert torch.allclose(old.encoder.conv_in.weight, new.encoder.conv_in.weight, atol=1e-9)
    # Codes that were used moved a little towards their features, the others not at all.
    moved = (old.codebook - new.codebook).norm(dim=1)
    spread = (old.codebook - old.codebook.mean(0)).norm(dim=1).mean()
    assert moved.max() < 0.5 * spread and (moved == 0).any()


@pytest.mark.slow
def test_resumed_run_ignores_init_from(tokens, tmp_path):
    train(student_config(tokens, 2), tmp_path)
    train(student_config(tokens, 3, "resume=auto", "init_from=nowhere"), tmp_path)


@pytest.mark.slow
def test_pretrained_weights_must_fit(tokens, tmp_path):
    first = train(student_config(tokens), tmp_path / "first")
    run = f"output_dir={tmp_path / 'run'}"
    config = student_config(tokens, 3, run, f"init_from={first}", "student.net.dim=16")
    with pytest.raises(UserError, match=r"dim 32 .* != 16 .*set student.net.dim=32"):
        build_run(config)
    student = load_student(first)
    student.tokenizer_fingerprint = "0" * 16
    save_model(student, tmp_path / "other")
    with pytest.raises(UserError, match="ids of tokenizer 0{16}"):
        build_run(student_config(tokens, 3, run, f"init_from={tmp_path / 'other'}"))


def test_run_with_weight_ema_saves_both_weights(images, tmp_path):
    """The average is exported; the run itself resumes from the trained weights."""
    made = train(tokenizer_config(images, 3, *EMA), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    name = "decoder.conv_out.weight"
    exported = load_tokenizer(made).state_dict()[name]
    assert torch.equal(saved["state_dict"][f"model.{name}"], exported)
    assert not torch.equal(saved["current_model_state"][f"model.{name}"], exported)


@pytest.mark.slow
def test_run_in_two_jobs_keeps_its_schedule(tokens, tmp_path):
    train(student_config(tokens, 6, "callbacks.stop_at_step.step=4"), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 4
    rate = saved["lr_schedulers"][0]["_last_lr"][0]
    train(student_config(tokens, 6, "resume=auto"), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6
    assert saved["lr_schedulers"][0]["_last_lr"][0] < rate  # the schedule continued


def test_crashed_run_has_a_checkpoint_of_its_last_validation(tokens, tmp_path, monkeypatch):
    # With this learning rate the best checkpoint stays the oldest.
    config = student_config(tokens, 8, "trainer.val_check_interval=2", "optimizer.lr=1e-30")
    original = StudentModule.training_step

    def breaks(self, batch, index):
        if self.global_step == 7:
            raise RuntimeError("power cut")
        return original(self, batch, index)

    monkeypatch.setattr(StudentModule, "training_step", breaks)
    with pytest.raises(RuntimeError, match="power cut"):
        train(config, tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 6


@pytest.mark.slow
def test_run_does_not_mix_with_another(tokens, tmp_path):
    train(student_config(tokens), tmp_path)
    before = (tmp_path / "student" / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="overwrite=true"):
        train(student_config(tokens, 3, "seed=1"), tmp_path)
    assert (tmp_path / "student" / "model.safetensors").read_bytes() == before
    train(student_config(tokens, 3, "seed=1", "overwrite=true"), tmp_path)
    assert sorted(file.name for file in (tmp_path / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "step=000003.ckpt",
    ]
    assert (tmp_path / "student" / "model.safetensors").read_bytes() != before


def test_the_directory_of_a_run_in_place_of_a_checkpoint_is_named(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    [error] = init_errors(str(tmp_path / "run"), None, "student")
    assert "is the directory of a run: set resume=" in error
    assert error.endswith(f"output_dir={tmp_path / 'run'} resume=auto")
