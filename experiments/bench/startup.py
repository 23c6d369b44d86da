"""How long one waits: for `delvm --help`, and for the first step of a training run.

The first step is all of `delvm train` with the tiny student and one step: imports, the config, its
checks, the data, a checkpoint written and a validation pass over it.
"""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from delvm.data.shards import manifest, writer
from experiments.bench.frame import Row, medians

REPEATS = 9
N, V, WIDTH = 64, 1024, 8  # tokens an image, codes and their width: those of conf/tokenizer


def rows() -> list[Row]:
    """Wall time of `delvm --help` beside an interpreter that does nothing, and of one step."""
    seconds = medians(
        {"ours": _process("-m", "delvm", "--help"), "peer": _process("-c", "pass")}, REPEATS
    )
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder, "tokens"))
        step = _process("-m", "delvm", "train", *overrides(Path(folder)))
        first = medians({"step": step}, 3)["step"]
    return [
        Row.compare("startup", seconds["ours"], seconds["peer"], goal="ours < 1", unit="s",
                    note=f"delvm --help beside python -c pass; medians of {REPEATS}, turn about"),
        Row("first_step", first, None, None, "ours < 15", "s",
            "delvm train student=tiny trainer.max_steps=1, from the command to its end"),
    ]  # fmt: skip


def write(root: Path) -> None:
    """Random ids of one task, to train on and to validate with."""
    manifest.write_codebook(root, torch.zeros(V, WIDTH), "f" * 16)
    for split in ("train", "val"):
        pairs = manifest.plan_images(split, "pose", source="s", seed=0, image_size=64)
        plan = manifest.plan_tokens(
            pairs, 64, tokens_per_image=N, vocab_size=V, fingerprint="f" * 16
        )

        def ids(start: int, stop: int) -> list[np.ndarray]:
            return [np.random.default_rng(start).integers(0, V, (stop - start, 2, N))]

        writer.write_tokens(root, plan, ids)


def overrides(folder: Path) -> list[str]:
    """Of the run."""
    return [
        "module=student", "student=tiny", "tokenizer=shapes_f8_64", "data=sentences",
        f"data.path={folder / 'tokens'}", f"output={folder / 'run'}", "overwrite=true",
        "trainer.max_steps=1",
    ]  # fmt: skip


def _process(*words: str) -> Callable[[], object]:
    command = [sys.executable, *words]
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
