"""Varied orders of tokens, and corrupted inputs: do they help where data is repeated?"""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.data import study as data
from experiments.studies.corpora import PAIRS, corpus
from experiments.studies.measure import (
    SEEDS,
    Estimate,
    Row,
    markdown,
    scores,
    training_row,
    values,
)
from experiments.studies.runs import report, training
from experiments.studies.stages import Stage

QUESTION = "On repeated data, do random token orders or corrupted inputs act as augmentation?"
SENTENCE = 8 * 16  # tokens
CORPORA = ("hundredth", "tenth")
SETTINGS = {
    "raster": "",
    "random_order": "module/token_order=random",
    "noise": "module.token_noise=0.2",
}


def stages() -> Iterator[Stage]:
    """Students of each setting; those in raster order are those of `data` alone."""
    for name in CORPORA:
        yield from corpus(name)
    for seed in SEEDS:
        yield from (student_stage(name, each, seed) for name in CORPORA for each in SETTINGS)
        yield report_stage(seed)


def student_stage(name: str, setting: str, seed: int) -> Stage:
    """A student of one corpus, setting and seed."""
    if not SETTINGS[setting]:
        return data.student_stage(name, "alone", seed)
    return training(
        f"token_order/{name}_{setting}_{seed}",
        "distill_alone",
        seed=seed,
        corpus=name,
        overrides=SETTINGS[setting],
    )


def report_stage(seed: int) -> Stage:
    """The answers of all students of a seed."""
    runs = [(name, setting) for name in CORPORA for setting in SETTINGS]
    students = {f"{name}_{setting}": student_stage(name, setting, seed) for name, setting in runs}
    return report(f"token_order/report_{seed}", students, seed=seed)


def measure() -> list[Row]:
    """One row per corpus, setting and seed."""
    rows = []
    for seed in SEEDS:
        scored = scores(report_stage(seed).output)
        for name in CORPORA:
            for setting in SETTINGS:
                trained = training_row(student_stage(name, setting, seed), SENTENCE)
                labels = {"corpus": name, "setting": setting, "seed": seed}
                rows.append(labels | trained | scored[f"{name}_{setting}"])
    return rows


def table(rows: Sequence[Row]) -> str:
    """Losses and scores of each corpus and setting."""
    body = []
    for name in CORPORA:
        for setting in SETTINGS:
            where = {"corpus": name, "setting": setting}
            cells = [
                Estimate.of(values(rows, column, **where)).text()
                for column in ("loss", "target_loss", "score")
            ]
            body.append([f"{sum(PAIRS[name].values()):,} pairs, `{setting}`", *cells])
    return markdown(["", "loss", "loss of targets", "score"], body)


def plot(rows: Sequence[Row], figure: Any) -> None:
    """Loss of targets of each setting and seed, one panel per corpus."""
    for panel, name in zip(figure.subplots(1, len(CORPORA)), CORPORA, strict=True):
        for place, setting in enumerate(reversed(SETTINGS)):
            found = values(rows, "target_loss", corpus=name, setting=setting)
            panel.plot(found, [place] * len(found), "o", alpha=0.7, color="C0")
        panel.set_yticks(range(len(SETTINGS)), reversed(SETTINGS))
        panel.set_xlabel("loss of target tokens")
        panel.set_title(f"{sum(PAIRS[name].values()):,} pairs")
