"""Whole training runs, small: what they learn, what they leave, and how they resume."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from delvm.data import manifest, shards
from delvm.data.examples import Example
from delvm.data.pictures import PicturesConfig
from delvm.data.sentences import SentencesConfig
from delvm.errors import UserError
from delvm.interop.checkpoints import load_student, load_tokenizer, save_model
from delvm.models.transformer import Init, TransformerConfig
from delvm.models.vqgan import VQGANConfig
from delvm.training.config import (
    DistillationModule,
    LoggerConfig,
    LoggerName,
    OptimConfig,
    Perceptual,
    StudentConfig,
    StudentModule,
    TeacherConfig,
    TokenizerConfig,
    TokenizerModule,
    TrainConfig,
    TrainerConfig,
)
from delvm.training.data import PictureData
from delvm.training.run import build, precision, train
from delvm.training.student import StudentTraining
from tests.data.shard_makers import write_examples

N, V = 4, 16


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> Path:
    """Token shards of a task that can be learnt: the target is the input, one id further."""
    root = tmp_path_factory.mktemp("tokens")
    torch.manual_seed(0)
    manifest.write_codebook(root, torch.randn(V, 8), "f" * 16)
    for split, count in (("train", 256), ("val", 8)):
        plan = manifest.plan_tokens(
            manifest.plan_pairs(split, "pose", source="s", seed=0, image_size=8),
            count, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16,
        )  # fmt: skip

        def ids(start, stop):
            inputs = np.random.default_rng(start).integers(0, V, (stop - start, 1, N))
            yield np.concatenate((inputs, (inputs + 1) % V), axis=1)

        shards.write_tokens(root, plan, ids)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Pair shards of flat colours."""
    root = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        colours = rng.integers(0, 256, (8, 2, 3))
        pairs = [
            Example(f"{i}", "derain", tuple(np.full((16, 16, 3), c, np.uint8) for c in both))
            for i, both in enumerate(colours)
        ]
        write_examples(root, split, "derain", pairs, source="s", seed=0, image_size=16)
    return root


def student_config(tokens: Path, steps: int = 3, **changes: object) -> TrainConfig:
    net = TransformerConfig(V, 32, 2, 2, context=32, codebook_dim=8, init=Init.ordinary)
    values = {
        "module": StudentModule(input_weight=0.0),
        "student": StudentConfig(net),
        "data": SentencesConfig(path=str(tokens), pairs_per_sentence=2, batch_size=8),
        "optim": OptimConfig(lr=1e-2, warmup=0.1),
        "trainer": TrainerConfig(
            steps, accelerator="cpu", precision="32-true", val_every=steps, log_every=1, threads=1
        ),
    }
    return TrainConfig(**(values | changes))  # type: ignore[arg-type]


def curve(folder: Path, name: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


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


def test_resume_continues_the_steps(tokens, tmp_path):
    train(student_config(tokens, steps=2), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    assert load_student(tmp_path / "checkpoints" / "last.ckpt").config.width == 32
    train(student_config(tokens, steps=5, resume="auto"), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 5
    assert len(curve(tmp_path, "train/loss")) == 5  # the first job's stay in the table


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
    wide = StudentConfig(TransformerConfig(V, 64, 2, 2, context=32, codebook_dim=8))
    with pytest.raises(UserError, match=r"another network.*width 32 != 64"):
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
    narrow = TransformerConfig(V, 16, 2, 2, context=32, codebook_dim=8)
    config = student_config(tokens, start=str(first), student=StudentConfig(narrow))
    with pytest.raises(UserError, match=r"width 32 .* != 16 .*set student.net.width=32"):
        build(config)
    student = load_student(first)
    student.tokenizer_fingerprint = "0" * 16
    save_model(student, tmp_path / "other")
    with pytest.raises(UserError, match="ids of tokenizer 0{16}"):
        build(student_config(tokens, start=str(tmp_path / "other")))


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
    logged: dict[str, torch.Tensor] = {}
    module.log_dict = logged.update
    loss = module.training_step({"ids": torch.randint(0, V, (4, 16))}, 0)
    assert logged["train/kd"].item() == pytest.approx(0, abs=1e-6)
    assert loss.item() == pytest.approx(logged["train/loss"].item())


TOKENIZER = VQGANConfig(16, 3, 32, [1, 1], 1, [], True, 32, 32, 8, patch_size=2)


def tokenizer_config(pictures, steps=30, net=TOKENIZER, **module) -> TrainConfig:
    return TrainConfig(
        module=TokenizerModule(**({"perceptual": 0.0, "revive_after": 10} | module)),
        tokenizer=TokenizerConfig(net),
        data=PicturesConfig(path=str(pictures), batch_size=8, buffer=16),
        optim=OptimConfig(lr=2e-3, warmup=0.1),
        trainer=TrainerConfig(
            steps, accelerator="cpu", precision="32-true", val_every=steps, log_every=1, threads=1
        ),
    )


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
    again = PictureData(PicturesConfig(path=str(pictures), batch_size=8), 0)
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


def test_an_adversary_learns_from_its_start_on(pictures, tmp_path):
    config = tokenizer_config(pictures, 4, adversarial=0.5, adversarial_start=2)
    config.module.discriminator_layers = 1
    train(config, tmp_path)
    assert len(curve(tmp_path, "train/adversarial")) == 2
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert len(saved["optimizer_states"]) == 2 and saved["global_step"] == 4


def test_an_averaged_run_goes_on_from_its_own_weights(pictures, tmp_path):
    """The average is exported; the run itself resumes from what it had learnt."""
    made = train(tokenizer_config(pictures, 3, average=0.5), tmp_path)
    saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    name = "decoder.conv_out.weight"
    exported = load_tokenizer(made).state_dict()[name]
    assert torch.equal(saved["state_dict"][f"model.{name}"], exported)
    assert not torch.equal(saved["current_model_state"][f"model.{name}"], exported)


def test_codes_of_length_one(pictures, tmp_path):
    net = replace(TOKENIZER, normalize_codes=True)
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
        build(student_config(tokens, data=PicturesConfig(path=str(pictures))))
    with pytest.raises(UserError, match="resume=PATH"):
        train(student_config(tokens, resume=str(tmp_path / "none.ckpt")), tmp_path)


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
        "last.ckpt",
        "step=3.ckpt",
    ]
    assert (tmp_path / "student" / "model.safetensors").read_bytes() != before


def test_precision_asked_for_is_kept():
    assert precision(TrainerConfig(precision="32-true")) == "32-true"
    assert precision(TrainerConfig(accelerator="cpu")) in ("32-true", "bf16-mixed")
