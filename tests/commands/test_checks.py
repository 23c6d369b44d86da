"""Errors across the groups of a training run: each alone, and several in one error."""

import shutil

import numpy as np
import pytest
import torch

from delvm.commands.app import compose
from delvm.configs.validate import config_errors
from delvm.data.types import Example
from delvm.training.run import launch
from tests.data.shard_makers import write_examples


def train_errors(*overrides: str) -> list[str]:
    """Errors of the config alone, whether or not its data exists."""
    found = config_errors("train", compose("train", overrides))
    return [each for each in found if not each.startswith("data.path=")]


ALONE = {
    "student.net.vocab_size=512": "codebook size 1024 (tokenizer) != vocab_size 512 (student): "
    "set student.net.vocab_size=1024",
    "student.net.codebook_dim=16": "code width 8 (tokenizer) != codebook_dim 16 (student): "
    "set student.net.codebook_dim=8",
    "data.pairs_per_sentence=5": "a sentence of 10 images is 640 tokens (10 x 64), and the "
    "student's max_seq_len is 512: set student.net.max_seq_len=640 or data.pairs_per_sentence=4",
    "student.net.drop_path=1.0": "student.net.drop_path 1.0 is not in [0, 1)",
    "student.net.attention=xformers": "student.net.attention=xformers needs a GPU, "
    "trainer.accelerator=cpu has none: set student.net.attention=sdpa",
    "module.loss.label_smoothing=2": "module.loss.label_smoothing=2.0 is a fraction: set it to 0.1",
    "student.net.n_heads=7": "student.net.dim 256 is not divisible by n_heads 7",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU, "
    "trainer.accelerator=cpu has none: set trainer.precision=bf16-mixed",
    "trainer.precision=bf16-mixd": "unknown trainer.precision=bf16-mixd: did you mean "
    "'bf16-mixed'?",
    "trainer.precision=bf16": "unknown trainer.precision=bf16: did you mean 'bf16-mixed'?",
    "trainer.precision=fp16": "unknown trainer.precision=fp16: did you mean '16-mixed'?",
    "trainer.accelerator=gpus": "unknown trainer.accelerator=gpus: did you mean 'gpu'?",
    "module=distillation": "module=distillation needs a teacher: set teacher.checkpoint=PATH",
    "teacher.checkpoint=x": "teacher.checkpoint=x, and this module has no use for it: set "
    "module=distillation or teacher.checkpoint=null",
    "data=images": "module=student learns from sentences, data is images: set data=sentences",
    "module=tokenizer": "module=tokenizer learns from images, data is sentences: set data=images",
    "resume=nowhere.ckpt": "checkpoint not found: nowhere.ckpt (set resume=PATH, auto or null)",
    "data.batch_size=0": "data.batch_size=0 is below 1: set it to 1 or more",
    "output_dir=s3://bucket/run": "output_dir=s3://bucket/run is a URL, and delvm train needs a "
    "local path: set output_dir=PATH",
    "num_threads=0": "num_threads=0 is below 1: set num_threads=1 or more",
    "data.num_workers=-1": "data.num_workers=-1 is below 0: set it to 0 or more",
    "optimizer.lr=0": "optimizer.lr=0.0 is not above 0: set it to 1.5e-4",
    "optimizer.lr=nan": "optimizer.lr=nan is not above 0: set it to 1.5e-4",
    "scheduler.warmup_ratio=1.5": "scheduler.warmup_ratio=1.5 is a fraction of the steps: set it "
    "from 0 to 1",
    "scheduler.decay_steps=0": "scheduler.decay_steps=0 is below 1: set it to 1 or null",
    "module.token_noise=2": "module.token_noise=2.0 is a fraction: set it from 0 to 1",
    "trainer.devices=2": "strategy=single is one device, and trainer.devices=2 "
    "trainer.num_nodes=1: set strategy=ddp or strategy=fsdp2",
    "strategy=fsdp": "strategy=fsdp needs GPUs, trainer.accelerator=cpu has none: set "
    "strategy=fsdp2",
    "optimizer.betas=[0.9]": "optimizer.betas=[0.9] are not two numbers in [0, 1): set [0.9,0.95]",
}


@pytest.mark.slow
@pytest.mark.parametrize("override", ALONE)
def test_each_error_alone(override):
    assert train_errors(override) == [ALONE[override]]


def test_defaults_have_no_errors():
    assert train_errors() == []


@pytest.mark.parametrize("student", ["tiny", "small"])
@pytest.mark.slow
def test_small_students_follow_their_tokenizer(student):
    assert train_errors("tokenizer=shapes_f8_32", f"student={student}") == []


def test_learned_embedding_needs_no_code_width():
    assert train_errors("student.net.embedding=learned", "student.net.codebook_dim=16") == []


def test_all_errors_of_a_tokenizer_architecture():
    words = ["module=tokenizer", "data=images", "tokenizer.net.resolution=60"]
    found = train_errors(*words, "tokenizer.net.hidden_channels=48")
    assert all(each.startswith("tokenizer.net.") for each in found)
    assert any("resolution 60 is not a multiple" in each for each in found)
    assert any("hidden_channels 48 x channel_mult 1" in each for each in found)


TOKENIZER = {
    "module.perceptual_loss=lpips": "module.perceptual_loss=lpips needs vgg_weights: set "
    "module.vgg_weights=PATH to a VGG16 with torchvision's names (vgg16-397923af.pth of "
    "download.pytorch.org/models), or module.perceptual_loss=ms_ssim",
    "init_from=nowhere": "tokenizer not found: nowhere is not a folder, a checkpoint, or the name "
    "of shipped weights (shapes): set init_from=PATH or null",
    "trainer.devices=2": "trainer.devices=2 trainer.num_nodes=1 strategy=single_device and "
    "module=tokenizer, which keeps its codebook on one device: set trainer.devices=1 "
    "trainer.num_nodes=1 strategy=single",
    "module.codebook_ema_decay=1.0": "module.codebook_ema_decay=1.0 is not in [0, 1): set it to "
    "0.99 or null",
    "module.l1_weight=-1": "module.l1_weight=-1.0 is below 0: set it to 0 or more",
    "module.disc_num_layers=0": "module.disc_num_layers=0 is below 1: set it to 1 or more",
}


@pytest.mark.parametrize("override", TOKENIZER)
def test_each_error_of_a_tokenizer_alone(override):
    assert train_errors("module=tokenizer", "data=images", override) == [TOKENIZER[override]]


def test_discriminator_refuses_16_mixed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["module=tokenizer", "data=images", "trainer=gpu", "module.disc_weight=0.5"]
    found = train_errors(*words, "trainer.precision=16-mixed")
    assert [each.split("set ")[1] for each in found] == [
        "trainer.precision=bf16-mixed or module.disc_weight=0",
    ]


@pytest.mark.slow
def test_cpu_flash_needs_bfloat16_on_cpu(monkeypatch):
    asked = "student.net.attention=cpu_flash"
    monkeypatch.setattr(launch, "cpu_flash_available", lambda: True)
    assert train_errors(asked, "trainer.precision=bf16-mixed") == []
    assert train_errors(asked, "trainer.precision=32-true", "student.net.dropout=0.1") == [
        f"{asked} computes in bfloat16, and trainer.precision is 32-true: "
        "set student.net.attention=sdpa",
        f"{asked} has no dropout, and student.net.dropout=0.1: set student.net.attention=sdpa",
    ]
    monkeypatch.setattr(launch, "cpu_flash_available", lambda: False)
    (found,) = train_errors(asked, "trainer.precision=bf16-mixed")
    assert "does not work on this machine: set student.net.attention=sdpa" in found


def test_compile_needs_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (found,) = train_errors("module.compile=true")
    assert "neither g++ nor clang++" in found and "set module.compile=false" in found
    distillation = ("module=distillation", "teacher.checkpoint=x", "teacher.compile=true")
    (found,) = train_errors(*distillation)
    assert found.startswith("teacher.compile=true needs") and "set teacher.compile=false" in found


@pytest.mark.slow
def test_missing_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert train_errors("trainer=gpu") == [
        "trainer.accelerator=gpu, and no CUDA device is visible: set trainer=cpu"
    ]


@pytest.mark.slow
def test_gpu_without_bf16_and_too_few_devices(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    words = ["trainer=gpu", "trainer.devices=2", "strategy=ddp"]
    found = train_errors(*words, "trainer.precision=bf16-mixed")
    assert [each.split(",")[0] for each in found] == [
        "trainer.precision=bf16-mixed",
        "trainer.devices=2",
    ]
    assert train_errors("trainer=gpu", "trainer.precision=16-mixed") == []
    assert train_errors("trainer=gpu") == []  # auto


MANY_DEVICES = {
    "strategy.shard_size=3": "strategy.shard_size=3 does not divide the 4 devices in all: set "
    "strategy.shard_size=4 or null",
    "strategy.process_group_backend=mpi": "unknown strategy.process_group_backend=mpi: "
    "choose from: gloo, nccl",
    "strategy.process_group_backend=nccl": "strategy.process_group_backend=nccl is for GPUs, "
    "trainer.accelerator=cpu has none: set strategy.process_group_backend=gloo",
    "trainer.num_nodes=2": "trainer.num_nodes=2, and nothing has started processes on other nodes: "
    "start the run by torchrun or srun (docs/scale.md), or set trainer.num_nodes=1",
}


@pytest.mark.slow
@pytest.mark.parametrize("override", MANY_DEVICES)
def test_each_error_of_a_run_on_many_devices_alone(override):
    words = ["trainer.devices=4", "strategy=fsdp2"]
    assert train_errors(*words) == []
    assert train_errors(*words, override) == [MANY_DEVICES[override]]


@pytest.mark.slow
def test_scaled_gradients_are_not_sharded(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    words = ["trainer=gpu", "trainer.devices=4", "trainer.precision=16-mixed"]
    (found,) = train_errors(*words, "strategy=hsdp")
    assert "this strategy shards: set trainer.precision=bf16-mixed, or strategy=ddp" in found
    assert train_errors(*words, "strategy=ddp") == []
    assert train_errors(*words, "strategy=fsdp") == []


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16"}
SLURM = {"SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "a"}


@pytest.mark.parametrize("launcher, env", [("torchrun", TORCHRUN), ("SLURM", SLURM)])
def test_started_processes_must_match_the_trainer(launcher, env, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    words = ["strategy=ddp", "trainer.num_nodes=2"]
    assert train_errors(*words, "trainer.devices=8") == []
    assert train_errors(*words, "trainer.devices=4") == [
        f"trainer.devices=4 trainer.num_nodes=2, and {launcher} has started 8 processes on each of "
        "2 nodes: set trainer.devices=8 trainer.num_nodes=2"
    ]


@pytest.mark.slow
def test_sweep_does_not_start_processes(delvm, monkeypatch):
    words = ["train", "-m", "seed=0,1", "strategy=ddp", "trainer.devices=2", "data.path=none"]
    code, _, err = delvm(*words)
    line = err.splitlines()[-1]
    assert code == 2 and "each process started by a job would begin the sweep again" in line
    assert "torchrun --nproc-per-node 2" in line and "submitit_slurm" in line
    for name, value in (TORCHRUN | {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    assert "data.path=none" in delvm(*words)[2]  # launched from outside: the next error is reported


@pytest.mark.slow
def test_several_errors_come_in_one(delvm, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    words = [
        "student.net.vocab_size=512",
        "data.pairs_per_sentence=5",
        "trainer.precision=16-mixed",
        "module=distillation",
    ]
    code, out, err = delvm("train", *words)
    assert (code, out) == (2, "")
    lines = err.splitlines()
    assert lines[0] == "delvm: 5 errors in the config:"
    for word in words:
        assert f"  - {ALONE[word]}" in lines
    assert "data.path=outputs/shapes/tokens: no tokens in" in err
    assert list(tmp_path.iterdir()) == []  # no directory for a run that never began


@pytest.mark.slow
def test_shards_on_disk_decide(tmp_path):
    gray = np.full((16, 16, 3), 99, np.uint8)
    pairs = [Example(f"{i:06d}", "derain", (gray, gray)) for i in range(3)]
    write_examples(tmp_path, "train", "derain", pairs, source="test", seed=0, image_size=16)
    words = ["module=tokenizer", "data=images", f"data.path={tmp_path}"]
    assert config_errors("train", compose("train", words)) == [
        f"image size 16 (images in {tmp_path}) != resolution 64 (tokenizer): "
        "set tokenizer.net.resolution=16"
    ]
    found = config_errors("train", compose("train", [f"data.path={tmp_path}"]))
    assert len(found) == 1 and "holds images, not tokens" in found[0]


def test_decay_of_a_module_that_calls_the_optimizer_itself():
    words = ("module._target_=lightning.pytorch.demos.boring_classes.BoringModel",)
    assert train_errors(*words) == []
    assert train_errors(*words, "optimizer.decay=all") == [
        "optimizer.decay=all is for modules of DeLVM, this one groups its parameters itself: set "
        "optimizer.decay=matrices"
    ]
