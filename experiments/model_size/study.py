"""Four sizes of a student: loss against compute, and a fitted power law."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from experiments.studies.corpora import corpus
from experiments.studies.measure import SEEDS, Estimate, Row, markdown, training_row, values
from experiments.studies.runs import training
from experiments.studies.stages import Stage

QUESTION = "How does the loss fall with the size of a student, and with compute?"
SENTENCE = 8 * 16  # tokens
STEPS = "trainer.max_steps=800 trainer.val_check_interval=800"
# Name -> dim, layers, heads, learning rate.
SIZES = {
    "32x2": (32, 2, 1, 6e-3),
    "64x2": (64, 2, 2, 4e-3),
    "96x3": (96, 3, 3, 3e-3),
    "192x4": (192, 4, 3, 2e-3),
}


def stages() -> Iterator[Stage]:
    """A student of each size and seed."""
    yield from corpus("full")
    yield from (student_stage(size, seed) for seed in SEEDS for size in SIZES)


def student_stage(size: str, seed: int) -> Stage:
    """A student of one size."""
    dim, layers, heads, lr = SIZES[size]
    net = f"student.net.dim={dim} student.net.n_layers={layers} student.net.n_heads={heads}"
    return training(
        f"model_size/{size}_{seed}",
        "distill_alone",
        seed=seed,
        overrides=f"{STEPS} {net} optimizer.lr={lr}",
    )


def measure() -> list[Row]:
    """One row per size and seed."""
    return [
        {"size": size, "seed": seed} | training_row(student_stage(size, seed), SENTENCE)
        for seed in SEEDS
        for size in SIZES
    ]


def exponents(rows: Sequence[Row]) -> tuple[Estimate, Estimate]:
    """Slope and offset of log(loss of targets) against log10(TFLOP), a line per seed."""
    found = []
    for seed in SEEDS:
        flops, losses = (
            [values(rows, column, size=size, seed=str(seed))[0] for size in SIZES]
            for column in ("tflops", "target_loss")
        )
        found.append(np.polyfit(np.log10(flops), np.log(losses), 1))
    return Estimate.of(slope for slope, _ in found), Estimate.of(offset for _, offset in found)


def table(rows: Sequence[Row]) -> str:
    """Losses of each size, and the line."""
    body = []
    for size in SIZES:
        cells = [Estimate.of(values(rows, c, size=size)).text() for c in ("loss", "target_loss")]
        flops = Estimate.of(values(rows, "tflops", size=size)).mean
        body.append([f"`{size}`", f"{flops:.2f}", *cells])
    slope = exponents(rows)[0]
    return (
        markdown(["width x layers", "TFLOP", "loss", "loss of targets"], body)
        + "\n\nTen times the compute multiplies the loss of target tokens by "
        + Estimate(math.exp(slope.mean), 0.0, slope.half_width * math.exp(slope.mean)).interval(3)
        + " (95% interval over seeds)."
    )


def plot(rows: Sequence[Row], figure: Any) -> None:
    """Loss of targets against compute, and the line."""
    panel = figure.subplots()
    for number, size in enumerate(SIZES):
        x, y = (values(rows, column, size=size) for column in ("tflops", "target_loss"))
        panel.plot(x, y, "o", color=f"C{number}", label=size)
    slope, offset = (each.mean for each in exponents(rows))
    flops = np.array([float(row["tflops"]) for row in rows])
    line: npt.NDArray[np.float64] = np.geomspace(flops.min(), flops.max(), 20)
    panel.plot(line, np.exp(offset + slope * np.log10(line)), color="gray", linewidth=1)
    panel.set_xscale("log")
    panel.set_yscale("log")
    for axis in (panel.xaxis, panel.yaxis):  # plain numbers, not powers of ten
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    panel.set_xlabel("compute of the training (TFLOP)")
    panel.set_ylabel("loss of target tokens")
    panel.legend()
