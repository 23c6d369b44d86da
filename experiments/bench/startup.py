"""Start-up time: of `delvm --help`, and of a training run of one step.

The training run is a complete `delvm train` with the tiny student: imports, composing and
validating the config, the data, one step, a validation pass and a checkpoint.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from delvm.data.shards import codebook as codebooks
from delvm.data.shards import manifest, writer
from experiments.bench.harness import Row, medians

REPEATS = 9
N, V, WIDTH = 64, 1024, 8  # tokens per image, codebook size and code dim, as in conf/tokenizer


def rows() -> list[Row]:
    """Wall time of `delvm --help` compared with `python -c pass`, and of a run of one step."""
    seconds = medians(
        {"ours": _process("-m", "delvm", "--help"), "peer": _process("-c", "pass")}, REPEATS
    )
    with tempfile.TemporaryDirectory() as tmp:
        write_shards(Path(tmp, "tokens"))
        train = _process("-m", "delvm", "train", *train_overrides(Path(tmp)))
        first_step = medians({"train": train}, 3)["train"]
    return [
        Row.compare("startup", seconds["ours"], seconds["peer"], goal="ours < 1", unit="s",
                    note=f"delvm --help vs. python -c pass; medians of {REPEATS}, interleaved"),
        Row("first_step", first_step, None, None, "ours < 15", "s",
            "delvm train student=tiny trainer.max_steps=1, from start to exit"),
    ]  # fmt: skip


def write_shards(root: Path) -> None:
    """Write token shards of random ids: one task, splits train and val."""
    codebooks.write_codebook(root, torch.zeros(V, WIDTH), "f" * 16)
    for split in ("train", "val"):
        pairs = manifest.plan_images(split, "pose", source="s", seed=0, image_size=64)
        plan = manifest.plan_tokens(
            pairs, 64, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16
        )

        def ids(start: int, stop: int) -> list[np.ndarray]:
            return [np.random.default_rng(start).integers(0, V, (stop - start, 2, N))]

        writer.write_tokens(root, plan, ids)


def train_overrides(root: Path) -> list[str]:
    """Overrides of the training run, which writes below `root`."""
    return [
        "module=student", "student=tiny", "tokenizer=shapes_f8_64", "data=sentences",
        f"data.path={root / 'tokens'}", f"output_dir={root / 'run'}", "overwrite=true",
        "trainer.max_steps=1",
    ]  # fmt: skip


def _process(*args: str) -> Callable[[], object]:
    command = [sys.executable, *args]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
