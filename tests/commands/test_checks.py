"""Faults across groups: each alone, and several in one error."""

import shutil

import numpy as np
import pytest
import torch

from delvm.commands.app import compose
from delvm.commands.checks_train import train_faults
from delvm.data.types import Example
from delvm.models.cpu import attention as cpu_attention
from tests.data.shard_makers import write_examples


def of_config(verb: str, *overrides: str) -> list[str]:
    """Faults of the config alone, whether or not its data is there."""
    cfg = compose(verb, overrides)
    found = [f"data.{each}" for each in cfg.data.validate()] + train_faults(cfg)
    return [each for each in found if not each.startswith("data.path=")]


ALONE = {
    "student.net.vocab_size=512": "codebook size 1024 (tokenizer) != vocab_size 512 (student): "
    "set student.net.vocab_size=1024",
    "student.net.codebook_dim=16": "code width 8 (tokenizer) != codebook_dim 16 (student): "
    "set student.net.codebook_dim=8",
    "data.pairs_per_sentence=5": "a sentence of 10 pictures is 640 tokens (10 x 64), and the "
    "student's context is 512: set student.net.max_seq_len=640 or data.pairs_per_sentence=4",
    "student.net.drop_path=1.0": "student.net: drop_path 1.0 is not in [0, 1)",
    "student.net.attention=xformers": "student.net.attention=xformers needs a GPU, "
    "trainer.accelerator=cpu has none: set student.net.attention=sdpa",
    "module.label_smoothing=2": "module.label_smoothing=2.0 is a share: set it from 0 to 1",
    "student.net.n_heads=7": "student.net: dim 256 is not divisible by n_heads 7",
    "trainer.precision=16-mixed": "trainer.precision=16-mixed needs a GPU, "
    "trainer.accelerator=cpu has none: set trainer.precision=bf16-mixed",
    "trainer.precision=bf16-mixd": "unknown trainer.precision=bf16-mixd: did you mean "
    "'bf16-mixed'?",
    "trainer.accelerator=gpus": "unknown trainer.accelerator=gpus: did you mean 'gpu'?",
    "module=distillation": "module=distillation needs a teacher: set teacher.checkpoint=PATH",
    "teacher.checkpoint=x": "teacher.checkpoint=x, and module=student has no use for it: set "
    "module=distillation or teacher.checkpoint=null",
    "data=images": "module=student learns from sentences, data is images: set data=sentences",
    "module=tokenizer": "module=tokenizer learns from pictures, data is sentences: set data=images",
    "module.name=distillation": "module.name=distillation in the group module=student: set "
    "module=distillation",
    "resume=nowhere.ckpt": "checkpoint not found: nowhere.ckpt (set resume=PATH, auto or null)",
    "data.batch_size=0": "data.batch_size=0 is below 1: set it to 1 or more",
    "trainer.threads=0": "trainer.threads=0 is below 1: set trainer.threads=1 or more",
    "data.num_workers=-1": "data.num_workers=-1 is below 0: set it to 0 or more",
    "optim.lr=0": "optim.lr=0.0 is not above 0: set optim.lr=1.5e-4",
    "optim.warmup=1.5": "optim.warmup=1.5 is a share of the steps: set it from 0 to 1",
    "module.misread=2": "module.misread=2.0 is a share: set it from 0 to 1",
    "trainer.devices=2": "strategy=single is one device, and trainer.devices=2 trainer.nodes=1: "
    "set strategy=ddp or strategy=fsdp2",
    "strategy.name=fsdp2": "strategy.name=fsdp2 in another group: set strategy=fsdp2",
    "strategy=fsdp": "strategy=fsdp needs GPUs, trainer.accelerator=cpu has none: set "
    "strategy=fsdp2",
    "optim.betas=[0.9]": "optim.betas=[0.9] are not two numbers in [0, 1): set [0.9,0.95]",
}


@pytest.mark.parametrize("override", ALONE)
def test_each_fault_alone(override):
    assert of_config("train", override) == [ALONE[override]]


def test_defaults_have_no_errors():
    assert of_config("train") == []


@pytest.mark.parametrize("student", ["tiny", "small"])
def test_small_students_follow_their_tokenizer(student):
    assert of_config("train", "tokenizer=shapes_f8_32", f"student={student}") == []


def test_an_own_embedding_needs_no_code_width():
    assert of_config("train", "student.net.embedding=learned", "student.net.codebook_dim=16") == []


def test_a_tokenizer_that_contradicts_itself():
    words = ["module=tokenizer", "data=images", "tokenizer.net.resolution=60"]
    found = of_config("train", *words, "tokenizer.net.hidden_channels=48")
    assert [each.split(": ")[0] for each in found] == ["tokenizer.net"] * len(found)
    assert any("resolution 60 is not a multiple" in each for each in found)
    assert any("hidden_channels 48 x channel_mult 1" in each for each in found)


TOKENIZER = {
    "module.distance=lpips": "module.distance=lpips, and module.vgg_weights=null: set "
    "module.vgg_weights=PATH to a VGG16 with torchvision's names (vgg16-397923af.pth of "
    "download.pytorch.org/models), or module.distance=ms_ssim",
    "start=nowhere": "tokenizer not found: nowhere is not a folder, a checkpoint, or the name "
    "of shipped weights (shapes): set start=PATH or null",
    "trainer.devices=2": "trainer.devices=2 and module=tokenizer, which keeps its codebook on one "
    "device: set trainer.devices=1",
    "module.average=1.0": "module.average=1.0 is not in [0, 1): set module.average=0.99 or null",
    "module.l1=-1": "module.l1=-1.0 is below 0: set module.l1=0 or more",
    "module.discriminator_layers=0": "module.discriminator_layers=0 is below 1: set "
    "module.discriminator_layers=1 or more",
}


@pytest.mark.parametrize("override", TOKENIZER)
def test_each_fault_of_a_tokenizer_alone(override):
    assert of_config("train", "module=tokenizer", "data=images", override) == [TOKENIZER[override]]


def test_an_adversary_wants_its_gradients(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    words = ["module=tokenizer", "data=images", "trainer=gpu", "module.adversarial=0.5"]
    found = of_config("train", *words, "trainer.precision=16-mixed", "trainer.compile=true")
    assert [each.split("set ")[1] for each in found] == [
        "trainer.precision=bf16-mixed or module.adversarial=0",
        "trainer.compile=false",
    ]


def test_attention_of_ones_own_wants_bfloat16_on_a_processor(monkeypatch):
    asked = "student.net.attention=cpu_flash"
    monkeypatch.setattr(cpu_attention, "cpu_flash_available", lambda: True)
    assert of_config("train", asked, "trainer.precision=bf16-mixed") == []
    assert of_config("train", asked, "trainer.precision=32-true", "student.net.dropout=0.1") == [
        f"{asked} computes in bfloat16, and trainer.precision is 32-true: "
        "set student.net.attention=sdpa",
        f"{asked} has no dropout, and student.net.dropout=0.1: set student.net.attention=sdpa",
    ]
    monkeypatch.setattr(cpu_attention, "cpu_flash_available", lambda: False)
    (found,) = of_config("train", asked, "trainer.precision=bf16-mixed")
    assert "does not work on this machine: set student.net.attention=sdpa" in found


def test_compiling_wants_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    (found,) = of_config("train", "trainer.compile=true")
    assert "neither g++ nor clang++" in found and "set trainer.compile=false" in found


def test_an_absent_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert of_config("train", "trainer=gpu") == [
        "trainer.accelerator=gpu, and no CUDA device is visible: set trainer=cpu"
    ]


def test_a_gpu_with_less_than_is_asked_for(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    words = ["trainer=gpu", "trainer.devices=2", "strategy=ddp"]
    found = of_config("train", *words, "trainer.precision=bf16-mixed")
    assert [each.split(",")[0] for each in found] == [
        "trainer.precision=bf16-mixed",
        "trainer.devices=2",
    ]
    assert of_config("train", "trainer=gpu", "trainer.precision=16-mixed") == []
    assert of_config("train", "trainer=gpu") == []  # auto


SPREAD = {
    "strategy.shard=3": "strategy.shard=3 does not divide the 4 devices in all: set "
    "strategy.shard=4 or null",
    "strategy.backend=mpi": "unknown strategy.backend=mpi: choose from: gloo, nccl",
    "strategy.backend=nccl": "strategy.backend=nccl carries tensors of GPUs, "
    "trainer.accelerator=cpu has none: set strategy.backend=gloo",
    "trainer.nodes=2": "trainer.nodes=2, and nothing has started processes on other nodes: start "
    "the run by torchrun or srun (docs/scale.md), or set trainer.nodes=1",
}


@pytest.mark.parametrize("override", SPREAD)
def test_each_fault_of_a_run_on_many_devices_alone(override):
    words = ["trainer.devices=4", "strategy=fsdp2"]
    assert of_config("train", *words) == []
    assert of_config("train", *words, override) == [SPREAD[override]]


def test_scaled_gradients_are_not_spread(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    words = ["trainer=gpu", "trainer.devices=4", "trainer.precision=16-mixed"]
    (found,) = of_config("train", *words, "strategy=hsdp")
    assert "holds in parts: set trainer.precision=bf16-mixed, or strategy=ddp" in found
    assert of_config("train", *words, "strategy=ddp") == []
    assert of_config("train", *words, "strategy=fsdp") == []


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "LOCAL_WORLD_SIZE": "8", "WORLD_SIZE": "16"}
SLURM = {"SLURM_NTASKS": "16", "SLURM_NNODES": "2", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "a"}


@pytest.mark.parametrize("launcher, env", [("torchrun", TORCHRUN), ("SLURM", SLURM)])
def test_what_was_started_is_what_is_asked_for(launcher, env, monkeypatch):
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    words = ["strategy=ddp", "trainer.nodes=2"]
    assert of_config("train", *words, "trainer.devices=8") == []
    assert of_config("train", *words, "trainer.devices=4") == [
        f"trainer.devices=4 trainer.nodes=2, and {launcher} has started 8 processes on each of 2 "
        "nodes: set trainer.devices=8 trainer.nodes=2"
    ]


def test_a_sweep_starts_no_processes(delvm, monkeypatch):
    words = ["train", "-m", "seed=0,1", "strategy=ddp", "trainer.devices=2", "data.path=none"]
    code, _, err = delvm(*words)
    told = err.splitlines()[-1]
    assert code == 2 and "each process started by a job would begin the sweep anew" in told
    assert "torchrun --nproc-per-node 2" in told and "submitit_slurm" in told
    for name, value in (TORCHRUN | {"LOCAL_WORLD_SIZE": "2", "WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)
    assert "data.path=none" in delvm(*words)[2]  # launched from outside: the next fault is told


def test_several_faults_come_in_one_error(delvm, monkeypatch, tmp_path):
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
    assert list(tmp_path.iterdir()) == []  # no run folder for a run that never began


def test_the_shards_on_disk_count_not_the_config(tmp_path):
    grey = np.full((16, 16, 3), 99, np.uint8)
    pairs = [Example(f"{i:06d}", "derain", (grey, grey)) for i in range(3)]
    write_examples(tmp_path, "train", "derain", pairs, source="test", seed=0, image_size=16)
    words = ["module=tokenizer", "data=images", f"data.path={tmp_path}"]
    assert train_faults(compose("train", words)) == [
        f"image size 16 (pairs in {tmp_path}) != resolution 64 (tokenizer): "
        "set tokenizer.net.resolution=16"
    ]
    found = train_faults(compose("train", [f"data.path={tmp_path}"]))
    assert len(found) == 1 and "holds images, not tokens" in found[0]
