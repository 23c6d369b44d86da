"""1, 10 and 100% of a corpus, alone and distilled: how much data is a teacher worth?"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from experiments.distill import study as distill
from experiments.studies.corpora import PAIRS, corpus
from experiments.studies.measure import (
    SEEDS,
    Estimate,
    Row,
    gap_closed,
    markdown,
    scores,
    training_row,
    values,
)
from experiments.studies.runs import report, training
from experiments.studies.stages import Stage, preset

QUESTION = "How many times the data is a teacher worth?"
SENTENCE = 8 * 16  # tokens
# The lowest of all validations, as early stopping keeps it: the last one of little data is worse.
LOSS = "best_target_loss"
CORPORA = ("hundredth", "tenth", "full")
# Name -> that in `distill`.
STUDENTS = {
    "alone": "alone",
    "alone_equal_compute": "alone_equal_compute",
    "distilled": "forward_kl",
}


def stages() -> Iterator[Stage]:
    """The corpora, the teacher of `distill` (trained on all data), and students of each corpus."""
    for name in CORPORA:
        yield from corpus(name)
    yield distill.teacher_stage()
    for seed in SEEDS:
        yield from (student_stage(name, run, seed) for name in CORPORA for run in STUDENTS)
        yield report_stage(seed)


def student_stage(name: str, run: str, seed: int) -> Stage:
    """A student of one corpus and seed; those of the full corpus are those of `distill`."""
    if name == "full":
        return distill.student_stage("mixture", STUDENTS[run], seed)
    teacher = distill.teacher_stage() if run == "distilled" else None
    experiment = "distill_student" if teacher else "distill_alone"
    path = f"data/{name}_{run}_{seed}"
    overrides = "trainer.val_check_interval=100"  # to see when it overfits
    if run == "alone_equal_compute":
        steps = round(800 * preset().equal_compute)
        overrides = f"trainer.max_steps={steps} trainer.val_check_interval={steps // 16}"
    return training(path, experiment, seed=seed, corpus=name, teacher=teacher, overrides=overrides)


def report_stage(seed: int) -> Stage:
    """The answers of all students of a seed."""
    runs = [(name, run) for name in CORPORA for run in STUDENTS]
    students = {f"{name}_{run}": student_stage(name, run, seed) for name, run in runs}
    return report(f"data/report_{seed}", students, seed=seed)


def measure() -> list[Row]:
    """One row per corpus, student and seed."""
    rows = []
    for seed in SEEDS:
        scored = scores(report_stage(seed).output)
        for name in CORPORA:
            for run in STUDENTS:
                teacher = distill.teacher_stage().output if run == "distilled" else None
                trained = training_row(student_stage(name, run, seed), SENTENCE, teacher)
                labels = {"corpus": name, "pairs": sum(PAIRS[name].values()), "run": run}
                rows.append(labels | {"seed": seed} | trained | scored[f"{name}_{run}"])
    teacher_row = training_row(distill.teacher_stage(), SENTENCE)
    labels = {"corpus": "full", "pairs": sum(PAIRS["full"].values()), "run": "teacher", "seed": 0}
    return [*rows, labels | teacher_row]


def worth(rows: Sequence[Row], name: str, run: str) -> str:
    """Pairs with which a student alone would reach the loss of the distilled one, over its own.

    Interpolated between the corpora, linear in the logarithm of pairs; "at least" where a distilled
    student is better than the one alone with all pairs.

    Args:
        run: How the student alone is trained: alone or alone_equal_compute.
    """
    found, prefix = [], ""
    sizes = [math.log(sum(PAIRS[each].values())) for each in CORPORA]
    for seed in SEEDS:
        where = {"seed": str(seed)}
        losses = [values(rows, LOSS, corpus=c, run=run, **where)[0] for c in CORPORA]
        (reached,) = values(rows, LOSS, corpus=name, run="distilled", **where)
        if reached < min(losses):
            prefix = "at least "
        # np.interp wants increasing losses, and takes the last size for what is beyond.
        size = np.interp(reached, losses[::-1], sizes[::-1])
        found.append(math.exp(size - math.log(sum(PAIRS[name].values()))))
    return f"{prefix}{Estimate.of(found).text(1)} times"


def table(rows: Sequence[Row]) -> str:
    """Losses and scores of each corpus, and what the teacher is worth there."""
    (teacher,) = values(rows, LOSS, run="teacher")
    body = []
    for name in CORPORA:
        for run in STUDENTS:
            where = {"corpus": name, "run": run}
            cells = [
                Estimate.of(values(rows, column, **where)).text()
                for column in ("target_loss", LOSS, "score")
            ]
            closed, times = "", ["", ""]
            if run != "alone":
                alone = values(rows, LOSS, corpus=name, run="alone")
                of_gap = gap_closed(alone, values(rows, LOSS, **where), teacher)
                closed = of_gap.interval(scale=100) + " %"
            if run == "distilled":
                times = [worth(rows, name, each) for each in STUDENTS if each != run]
            pairs = sum(PAIRS[name].values())
            body.append([f"{pairs:,} pairs, {run}", *cells, closed, *times])
    losses = ["last loss of targets", "lowest", "score"]
    titles = ["of the gap (95%)", "worth of the teacher", "at equal compute"]
    return markdown(["", *losses, *titles], body)


def plot(rows: Sequence[Row], figure: Any) -> None:
    """Loss of targets and score against the number of pairs."""
    titles = {LOSS: "lowest loss of target tokens", "score": "score"}
    panels = figure.subplots(1, len(titles))
    for panel, (column, title) in zip(panels, titles.items(), strict=True):
        for number, run in enumerate(STUDENTS):
            sizes = [sum(PAIRS[name].values()) for name in CORPORA]
            found = [values(rows, column, corpus=name, run=run) for name in CORPORA]
            panel.plot(sizes, [np.mean(each) for each in found], color=f"C{number}", label=run)
            for size, each in zip(sizes, found, strict=True):
                panel.plot([size] * len(each), each, "o", color=f"C{number}", alpha=0.6)
        panel.set_xscale("log")
        panel.set_xlabel("pairs")
        panel.set_title(title)
    (teacher,) = values(rows, LOSS, run="teacher")
    panels[0].axhline(teacher, color="gray", label="teacher")
    panels[0].legend()
