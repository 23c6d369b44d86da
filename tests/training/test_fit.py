"""Complete training runs, small: what they learn, and what they write."""

import warnings

import numpy as np
import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.data import has_len_all_ranks
from torch.utils.data import DataLoader, IterableDataset

import delvm.training.tokenizer as tokenizer_training
from delvm.commands.instantiate import build_run
from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, writer
from delvm.errors import Diverged, UserError
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import save_model
from delvm.models.precision import resolve_precision
from delvm.training.data.datamodules import ImageDataModule
from delvm.training.run.fit import filter_warnings
from tests.training.runs import TOKENIZER, N, V, curve, student_config, tokenizer_config, train


@pytest.mark.slow
def test_student_learns_and_is_exported(tokens, tmp_path):
    made = train(student_config(tokens, 150), tmp_path)
    assert made == tmp_path / "student"
    losses = curve(tmp_path, "train/loss")
    assert losses[-1] < 0.3 * losses[0]
    assert curve(tmp_path, "val/pose/target_acc")[-1] > 0.8
    student = load_student(made)
    assert student.tokenizer_fingerprint == "f" * 16
    codebook, _ = codebooks.read_codebook(tokens)
    assert torch.equal(student.embed.codebook, codebook)


def test_validation_metrics_agree(tokens, tmp_path):
    train(student_config(tokens), tmp_path)
    (loss,), (ppl,) = curve(tmp_path, "val/loss"), curve(tmp_path, "val/ppl")
    assert ppl == pytest.approx(np.exp(loss), rel=1e-5)
    assert curve(tmp_path, "val/pose/loss") == [loss]  # the only task


@pytest.mark.slow
def test_same_seed_gives_the_same_student(tokens, tmp_path):
    for name in ("a", "b"):
        train(student_config(tokens), tmp_path / name)
    a, b = (load_student(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_single_images_are_packed_as_documents(tmp_path):
    """Trained on single images in a row, a student has learned nothing across their borders."""
    codebooks.write_codebook(tmp_path / "tokens", torch.randn(V, 8), "f" * 16)
    for split in ("train", "val"):
        plan = manifest.plan_tokens(
            manifest.plan_images(split, "images", source="s", seed=0, image_size=8),
            64, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16,
        )  # fmt: skip
        plan.images_per_example = 1
        rising = [np.arange(N) + np.arange(64)[:, None, None] % (V - N)]
        writer.write_tokens(tmp_path / "tokens", plan, lambda start, stop, r=rising: r)
    config = student_config(tmp_path / "tokens", 60)
    train(config, tmp_path / "run")
    # Within an image each token is the one before plus one; nothing predicts the first.
    assert curve(tmp_path / "run", "val/images/acc")[-1] > 0.95


@pytest.mark.slow
def test_distillation_does_not_change_its_teacher(tokens, tmp_path):
    teacher = train(student_config(tokens), tmp_path / "teacher")
    before = (teacher / "model.safetensors").read_bytes()
    config = distillation_config(tokens, teacher, "seed=1", f"output_dir={tmp_path / 'student'}")
    run = build_run(config)
    assert not any("teacher" in name for name in run.module.state_dict())
    run.fit()
    assert len(curve(tmp_path / "student", "train/kd")) == 3
    assert (teacher / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_distillation_from_itself_costs_nothing(tokens, tmp_path):
    teacher = train(student_config(tokens), tmp_path)
    module = build_run(distillation_config(tokens, teacher, "seed=1")).module
    module.model.load_state_dict(load_student(teacher).state_dict())
    loss = module.training_step(
        {"input_ids": torch.randint(0, V, (4, 16)), "images_per_example": torch.full((4,), 2)}, 0
    )
    (metrics,) = module.step_metrics
    assert metrics["train/kd"].item() == pytest.approx(0, abs=1e-6)
    assert loss.item() == pytest.approx(metrics["train/loss"].item())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fingerprint", "scale", "refused"),
    [
        ("", 1.0, ""),  # of another project, with the codes of these shards
        ("", 1.1, "a tokenizer with other codes"),
        ("e" * 16, 1.0, "tokenizer e{16}"),
    ],
)
def test_teacher_is_recognized_by_fingerprint_or_codebook(
    tokens, tmp_path, fingerprint, scale, refused
):
    teacher = load_student(train(student_config(tokens, 1), tmp_path / "first"))
    teacher.tokenizer_fingerprint = fingerprint
    teacher.embed.codebook *= scale
    save_model(teacher, tmp_path / "teacher")
    config = distillation_config(tokens, tmp_path / "teacher", f"output_dir={tmp_path / 'run'}")
    if not refused:
        assert build_run(config).module.teacher.tokenizer_fingerprint == ""
        return
    with pytest.raises(UserError, match=f"ids of {refused}, .* holds those of f{{16}}: set data"):
        build_run(config)


@pytest.mark.slow
def test_loss_of_a_step_is_over_all_its_batches(tokens, tmp_path):
    halves = ("trainer.accumulate_grad_batches=2", "data.batch_size=4")
    train(student_config(tokens, 4), tmp_path / "full")
    train(student_config(tokens, 4, *halves), tmp_path / "halves")
    expected, found = (curve(tmp_path / name, "train/loss") for name in ("full", "halves"))
    assert len(found) == 4 and found == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides",
    [
        ["module.perceptual_weight=0.1", "module.codebook_ema_decay=0.9"],
        ["module.codebook_ema_decay=null"],
        ["module.disc_weight=0.1", "module.disc_start=10", "module.disc_num_layers=1"],
        ["callbacks=[default,weight_ema]", "callbacks.weight_ema.decay=0.8"],
    ],
)
def test_tokenizer_learns(images, tmp_path, overrides):
    made = train(tokenizer_config(images, 30, *overrides), tmp_path)
    losses = curve(tmp_path, "train/reconstruction")
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert len(losses) == 30  # steps of the discriminator are not counted
    tokenizer = load_tokenizer(made)
    assert tokenizer.config == TOKENIZER
    (psnr,) = curve(tmp_path, "val/psnr")
    data = ImageDataModule(str(images), batch_size=8)
    pixels = data.val.tensors[0].float() / 255
    error = (tokenizer.decode(tokenizer.encode(pixels)) - pixels).square().flatten(1).mean(1)
    assert psnr == pytest.approx((-10 * error.log10()).mean().item(), rel=1e-3)
    assert 1 < curve(tmp_path, "val/codebook_perplexity")[0] <= 32
    assert sorted(file.name for file in (tmp_path / "images").iterdir()) == [
        "0000030.png",
        "codes_0000030.png",
    ]


@pytest.mark.slow
def test_loggers_get_the_images_and_each_run_is_its_own(images, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    for name in ("a", "b"):  # as in a sweep, which trains one after another
        loggers = "logger=[csv,tensorboard,wandb]"
        train(tokenizer_config(images, 2, loggers), tmp_path / name)
        assert len(curve(tmp_path / name, "train/loss")) == 2
        media = (tmp_path / name).glob("wandb/offline-run-*/files/media/images/val/*.png")
        assert {file.name.split("_")[0] for file in media} == {"reconstructions", "codes"}
        (events,) = (tmp_path / name / "tensorboard").glob("*tfevents*")
        assert b"val/reconstructions" in events.read_bytes()


def test_discriminator_that_stays_nonfinite_ends_the_run(images, tmp_path, monkeypatch):
    """Even though every step of the tokenizer in between is finite."""
    monkeypatch.setattr(
        tokenizer_training, "hinge_d_loss", lambda real, fake: torch.nan * real.sum()
    )
    config = tokenizer_config(
        images, 8, "module.disc_weight=0.5", "module.disc_start=0", "module.disc_num_layers=1",
        "callbacks.nonfinite_grad.max_nonfinite_steps=3",
    )  # fmt: skip
    with pytest.raises(Diverged, match="gradient of the discriminator was not finite for 3 steps"):
        train(config, tmp_path)


def test_discriminator_is_trained_from_disc_start(images, tmp_path):
    disc = ("module.disc_weight=0.5", "module.disc_start=2", "module.disc_num_layers=1")
    train(tokenizer_config(images, 4, *disc), tmp_path)
    assert len(curve(tmp_path, "train/adversarial")) == 2
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["optimizer_states"]) == 2 and saved["global_step"] == 4


@pytest.mark.slow
def test_l2_normalized_codes(images, tmp_path):
    config = tokenizer_config(images, 30, "tokenizer.net.use_l2_norm=true")
    tokenizer = load_tokenizer(train(config, tmp_path))
    torch.testing.assert_close(tokenizer.codebook.norm(dim=1), torch.ones(32))
    (psnr,) = curve(tmp_path, "val/psnr")
    assert psnr > 10


@pytest.mark.slow
def test_lpips_names_what_it_needs(images, tmp_path):
    lpips = ("module.perceptual_weight=1.0", "module.perceptual_loss=lpips")
    for overrides, words in (
        ([], "lpips needs the weights of a VGG16: set module.vgg_weights=PATH"),
        ([f"module.vgg_weights={tmp_path / 'none.pth'}"], "none.pth not found"),
    ):
        config = tokenizer_config(images, 30, *lpips, *overrides)
        with pytest.raises(UserError, match=words):
            train(config, tmp_path)


def test_user_errors(tokens, tmp_path):
    with pytest.raises(UserError, match="teacher.checkpoint=PATH"):
        build_run(student_config(tokens, 3, "module=distillation"))
    with pytest.raises(UserError, match="resume=PATH"):
        train(student_config(tokens, 3, f"resume={tmp_path / 'none.ckpt'}"), tmp_path)


def test_given_precision_is_kept():
    assert resolve_precision("32-true", "auto") == "32-true"
    assert resolve_precision("auto", "cpu") in ("32-true", "bf16-mixed")


def distillation_config(tokens, teacher, *overrides):
    """A short distillation from a teacher's checkpoint."""
    distill = ("module=distillation", f"teacher.checkpoint={teacher}", "module.input_weight=0.0")
    return student_config(tokens, 3, *distill, *overrides)


def test_a_stream_of_known_length_is_not_warned_of():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(range(2))

        def __len__(self):
            return 2

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        filter_warnings()
        has_len_all_ranks(DataLoader(Stream()), SingleDeviceStrategy(torch.device("cpu")))
    assert not caught
