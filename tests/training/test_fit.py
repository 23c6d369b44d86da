"""Whole training runs, small: what they learn, what they leave, and how they resume."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from delvm.data.datasets.images import ImagesConfig
from delvm.data.datasets.sentences import SentencesConfig
from delvm.data.shards import manifest, writer
from delvm.errors import Diverged, UserError
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import save_model
from delvm.models.precision import resolve_precision
from delvm.training import tokenizer as tokenizer_module
from delvm.training.config import (
    DistillationModule,
    LoggerConfig,
    LoggerName,
    Perceptual,
    TeacherConfig,
)
from delvm.training.datamodules import PictureData
from delvm.training.fit import build, train
from tests.training.runs import TOKENIZER, N, V, curve, student_config, tokenizer_config


def test_a_student_learns_and_is_exported(tokens, tmp_path):
    made = train(student_config(tokens, steps=150), tmp_path)
    assert made == tmp_path / "student"
    losses = curve(tmp_path, "train/loss")
    assert losses[-1] < 0.3 * losses[0]
    assert curve(tmp_path, "val/pose/target_acc")[-1] > 0.8
    student = load_student(made)
    assert student.tokenizer_fingerprint == "f" * 16
    codebook, _ = manifest.read_codebook(tokens)
    assert torch.equal(student.embed.codebook, codebook)


def test_validation_figures_agree(tokens, tmp_path):
    train(student_config(tokens), tmp_path)
    (loss,), (ppl,) = curve(tmp_path, "val/loss"), curve(tmp_path, "val/ppl")
    assert ppl == pytest.approx(np.exp(loss), rel=1e-5)
    assert curve(tmp_path, "val/pose/loss") == [loss]  # the only task


def test_the_same_seed_gives_the_same_student(tokens, tmp_path):
    for name in ("a", "b"):
        train(student_config(tokens), tmp_path / name)
    a, b = (load_student(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_single_pictures_are_packed_as_documents(tmp_path):
    """Trained on single pictures in a row, a student has learnt nothing across their borders."""
    manifest.write_codebook(tmp_path / "tokens", torch.randn(V, 8), "f" * 16)
    for split in ("train", "val"):
        plan = manifest.plan_tokens(
            manifest.plan_images(split, "images", source="s", seed=0, image_size=8),
            64, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16,
        )  # fmt: skip
        plan.images_per_example = 1
        rising = [np.arange(N) + np.arange(64)[:, None, None] % (V - N)]
        writer.write_tokens(tmp_path / "tokens", plan, lambda start, stop, r=rising: r)
    config = student_config(tmp_path / "tokens", steps=60)
    train(config, tmp_path / "run")
    # Within a picture each token is the one before and one; the first is told by nothing.
    assert curve(tmp_path / "run", "val/images/acc")[-1] > 0.95


def test_distillation_leaves_its_teacher_alone(tokens, tmp_path):
    teacher = train(student_config(tokens), tmp_path / "teacher")
    before = (teacher / "model.safetensors").read_bytes()
    config = student_config(
        tokens, module=DistillationModule(), teacher=TeacherConfig(str(teacher)), seed=1
    )
    module, _ = build(config)
    assert not any("teacher" in name for name in module.state_dict())
    train(config, tmp_path / "student")
    assert len(curve(tmp_path / "student", "train/kd")) == 3
    assert (teacher / "model.safetensors").read_bytes() == before


def test_distillation_towards_itself_is_free(tokens, tmp_path):
    teacher = train(student_config(tokens), tmp_path)
    config = student_config(
        tokens, module=DistillationModule(), teacher=TeacherConfig(str(teacher)), seed=1
    )
    module, _ = build(config)
    module.model.load_state_dict(load_student(teacher).state_dict())
    loss = module.training_step(
        {"input_ids": torch.randint(0, V, (4, 16)), "images_per_example": torch.full((4,), 2)}, 0
    )
    (told,) = module.told
    assert told["train/kd"].item() == pytest.approx(0, abs=1e-6)
    assert loss.item() == pytest.approx(told["train/loss"].item())


@pytest.mark.parametrize(
    ("mark", "codes", "refused"),
    [
        ("", 1.0, ""),  # of another project, with the codes of these shards
        ("", 1.1, "a tokenizer with other codes"),
        ("e" * 16, 1.0, "tokenizer e{16}"),
    ],
)
def test_a_teacher_is_known_by_its_tokenizer_or_its_codes(tokens, tmp_path, mark, codes, refused):
    teacher = load_student(train(student_config(tokens, steps=1), tmp_path))
    teacher.tokenizer_fingerprint = mark
    teacher.embed.codebook *= codes
    save_model(teacher, tmp_path / "teacher")
    config = student_config(
        tokens, module=DistillationModule(), teacher=TeacherConfig(str(tmp_path / "teacher"))
    )
    if not refused:
        assert build(config)[0].teacher.tokenizer_fingerprint == ""
        return
    with pytest.raises(UserError, match=f"ids of {refused}, .* holds those of f{{16}}: set data"):
        build(config)


def test_the_loss_of_a_step_is_that_of_all_its_batches(tokens, tmp_path):
    whole = student_config(tokens, steps=4)
    parts = student_config(tokens, steps=4)
    assert isinstance(parts.data, SentencesConfig)
    parts.data = replace(parts.data, batch_size=parts.data.batch_size // 2)
    parts.trainer.accumulate = 2
    for config, name in ((whole, "whole"), (parts, "parts")):
        config.trainer.log_every = 1
        train(config, tmp_path / name)
    wanted, found = (curve(tmp_path / name, "train/loss") for name in ("whole", "parts"))
    assert len(found) == 4 and found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        {"perceptual": 0.1, "ema_decay": 0.9},
        {"ema_decay": None},
        {"adversarial": 0.1, "adversarial_start": 10, "discriminator_layers": 1},
        {"average": 0.8},
    ],
)
def test_a_tokenizer_learns(pictures, tmp_path, module):
    made = train(tokenizer_config(pictures, **module), tmp_path)
    losses = curve(tmp_path, "train/reconstruction")
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert len(losses) == 30  # an adversary's steps are not counted as steps
    tokenizer = load_tokenizer(made)
    assert tokenizer.config == TOKENIZER
    (psnr,) = curve(tmp_path, "val/psnr")
    again = PictureData(ImagesConfig(path=str(pictures), batch_size=8), 0)
    pixels = again.val.tensors[0].float() / 255
    error = (tokenizer.decode(tokenizer.encode(pixels)) - pixels).square().flatten(1).mean(1)
    assert psnr == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-3)
    assert 1 < curve(tmp_path, "val/code_perplexity")[0] <= 32
    assert sorted(file.name for file in (tmp_path / "pictures").iterdir()) == [
        "0000030.png",
        "codes_0000030.png",
    ]


def test_every_logger_gets_the_pictures_and_each_run_is_its_own(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("a", "b"):  # as in a sweep, which trains one after the other
        config = tokenizer_config(pictures, steps=2)
        config.logger = LoggerConfig(LoggerName.wandb, offline=True)
        train(config, tmp_path / name)
        assert len(curve(tmp_path / name, "train/loss")) == 2
        media = (tmp_path / name).glob("wandb/offline-run-*/files/media/images/val/*.png")
        assert {file.name.split("_")[0] for file in media} == {"reconstructions", "codes"}
        (events,) = (tmp_path / name / "tensorboard").glob("*tfevents*")
        assert b"val/reconstructions" in events.read_bytes()


def test_an_adversary_that_is_no_number_for_ever_ends_the_run(pictures, tmp_path, monkeypatch):
    """Though every step of the tokenizer between its own is fine."""
    monkeypatch.setattr(
        tokenizer_module, "hinge_d_loss", lambda real, false: torch.nan * real.sum()
    )
    config = tokenizer_config(pictures, 8, adversarial=0.5, adversarial_start=0)
    config.module.discriminator_layers, config.trainer.max_skipped = 1, 3
    with pytest.raises(Diverged, match="gradient of the adversary was not finite for 3 steps"):
        train(config, tmp_path)


def test_an_adversary_learns_from_its_start_on(pictures, tmp_path):
    config = tokenizer_config(pictures, 4, adversarial=0.5, adversarial_start=2)
    config.module.discriminator_layers = 1
    train(config, tmp_path)
    assert len(curve(tmp_path, "train/adversarial")) == 2
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["optimizer_states"]) == 2 and saved["global_step"] == 4


def test_codes_of_length_one(pictures, tmp_path):
    net = replace(TOKENIZER, use_l2_norm=True)
    tokenizer = load_tokenizer(train(tokenizer_config(pictures, net=net), tmp_path))
    torch.testing.assert_close(tokenizer.codebook.norm(dim=1), torch.ones(32))
    (psnr,) = curve(tmp_path, "val/psnr")
    assert psnr > 10


def test_lpips_says_what_it_needs(pictures, tmp_path):
    for changes, words in (
        ({}, "lpips needs the weights of a VGG16: set module.vgg_weights=PATH"),
        ({"vgg_weights": str(tmp_path / "none.pth")}, "none.pth is not there"),
    ):
        config = tokenizer_config(pictures, perceptual=1.0, distance=Perceptual.lpips, **changes)
        with pytest.raises(UserError, match=words):
            train(config, tmp_path)


def test_faults(tokens, pictures, tmp_path):
    with pytest.raises(UserError, match="teacher.checkpoint=PATH"):
        build(student_config(tokens, module=DistillationModule()))
    with pytest.raises(UserError, match="set data=sentences"):
        build(student_config(tokens, data=ImagesConfig(path=str(pictures))))
    with pytest.raises(UserError, match="resume=PATH"):
        train(student_config(tokens, resume=str(tmp_path / "none.ckpt")), tmp_path)


def test_precision_asked_for_is_kept():
    assert resolve_precision("32-true", "auto") == "32-true"
    assert resolve_precision("auto", "cpu") in ("32-true", "bf16-mixed")
