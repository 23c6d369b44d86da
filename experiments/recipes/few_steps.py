"""A few steps of each recipe at full width and depth on a CPU, on random ids; prints a table.

python -m experiments.recipes.few_steps [recipes=pretrain_80m,pretrain_300m] [steps=3] [dir=PATH]
"""

import csv
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

import delvm
from delvm.commands.build import build
from delvm.data.shards import manifest, writer
from delvm.data.shards.codebook import write_codebook
from delvm.interop.save import save_model

CODES, WIDTH, TOKENS, FINGERPRINT = 8192, 256, 256, "f" * 16
# One process, sentences of one pair (512 tokens), bfloat16.
CPU = (
    "trainer.accelerator=cpu", "trainer.devices=1", "strategy=single",
    "trainer.accumulate_grad_batches=1", "trainer.precision=bf16-mixed", "data.batch_size=1",
    "data.images_per_sentence=2", "data.num_workers=0", "data.num_val_examples=1",
    "trainer.log_every_n_steps=1", "logger=csv", "scheduler.warmup_ratio=0.0",
)  # fmt: skip
# 1.1 billion parameters with float32 gradients and moments take 18 GiB, in bfloat16 half of that.
CHANGES = {
    "pretrain_80m": (),
    "pretrain_300m": (),
    "pretrain_1b": ("trainer.precision=bf16-true", "student.net.activation_checkpointing=1"),
    "kd_1b_to_300m": ("teacher.precision=bf16",),
}


def write_tokens(root: Path) -> torch.Tensor:
    """Token shards of random ids, and their codebook (8192, 256)."""
    torch.manual_seed(0)
    codebook = torch.randn(CODES, WIDTH)
    write_codebook(root, codebook, FINGERPRINT)
    for split in ("train", "val"):
        images = manifest.plan_images(split, "derain", source="s", seed=0, image_size=256)
        plan = manifest.plan_tokens(
            images, 16, tokens_per_image=TOKENS, vocab_size=CODES, fingerprint=FINGERPRINT
        )
        ids = torch.randint(CODES, (16, 2, TOKENS)).numpy()
        writer.write_tokens(root, plan, lambda start, stop, ids=ids: [ids[start:stop]])  # type: ignore[misc]
    return codebook


def overrides(name: str, folder: Path, steps: int) -> list[str]:
    """Of the run of one recipe, whose teacher, if any, is in ``folder``."""
    words = [f"experiment={name}", *CPU, *CHANGES[name], f"trainer.max_steps={steps}"]
    words += [f"trainer.val_check_interval={steps}", f"data.path={folder / 'tokens'}"]
    teacher = [f"teacher.checkpoint={folder / 'teacher'}"] if name.startswith("kd_") else []
    # Three copies of the weights on disk would say nothing here.
    return [*words, *teacher, f"output_dir={folder / name}", "~callbacks.checkpoint"]


def save_teacher(folder: Path, codebook: torch.Tensor) -> None:
    """A teacher of the 1B recipe's sizes, with initial weights in bfloat16."""
    settings = delvm.compose("train", ["experiment=pretrain_1b"]).student.net
    net: Any = build(settings, "student")
    net.load_codebook(codebook, FINGERPRINT)
    save_model(net.bfloat16(), folder / "teacher", torch.bfloat16)


def rows(names: list[str], steps: int, folder: Path) -> Iterator[str]:
    """The lines of the table, in Markdown; each run is a process of its own."""
    codebook = write_tokens(folder / "tokens")
    yield "| recipe | loss of each step | s per step, last | peak memory |"
    yield "|---|---|--:|--:|"
    for name in names:
        if name.startswith("kd_"):
            save_teacher(folder, codebook)
        command = [sys.executable, "-m", "delvm", "train", *overrides(name, folder, steps)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (file,) = (folder / name).rglob("metrics.csv")
        logged = list(csv.DictReader(file.open()))
        losses = [float(row["train/loss"]) for row in logged if row["train/loss"]]
        parts = [
            sum(float(v) for k, v in row.items() if k.startswith("time/") and v) for row in logged
        ]
        seconds = [each for each in parts if each]
        shown = ", ".join(f"{loss:.3f}" for loss in losses)
        peak = max(float(row["train/memory_gib"] or 0) for row in logged)
        yield f"| `{name}` | {shown} | {seconds[-1]:.1f} | {peak:.1f} GiB |"


def main() -> None:
    """Run the recipes given, or all."""
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    names = given["recipes"].split(",") if "recipes" in given else [*CHANGES]
    with tempfile.TemporaryDirectory(dir=given.get("dir")) as folder:
        for line in rows(names, int(given.get("steps", 3)), Path(folder)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
