"""A corpus of one frequent and three rare tasks: as it is, repeated, or augmented?"""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.studies.corpora import PAIRS, TASKS, corpus
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

QUESTION = "Does augmenting rare tasks beat repeating them, and leaving them rare?"
SENTENCE = 8 * 16  # tokens
_COUNTS = ",".join(f"{task}:{count}" for task, count in PAIRS["long_tail"].items())
# Name -> option of `delvm encode balance=`, overrides. Sentences of the unbalanced corpus are as
# often of a task as it has pairs; the others have each task equally often.
BALANCES = {
    "unbalanced": ("none", f"data.task_weights={{{_COUNTS}}}"),
    "oversample": ("oversample", ""),
    "augment": ("augment", ""),
}


def stages() -> Iterator[Stage]:
    """The corpora, and students like those of `distill`, alone."""
    for balance, _ in BALANCES.values():
        yield from corpus("long_tail", balance)
    for seed in SEEDS:
        runs = {name: student_stage(name, seed) for name in BALANCES}
        yield from runs.values()
        yield report_stage(seed)


def student_stage(name: str, seed: int) -> Stage:
    """A student of one balance and seed."""
    balance, overrides = BALANCES[name]
    return training(
        f"balance/{name}_{seed}",
        "distill_alone",
        seed=seed,
        corpus="long_tail",
        balance=balance,
        overrides=overrides,
    )


def report_stage(seed: int) -> Stage:
    """The answers of the three students of a seed."""
    students = {name: student_stage(name, seed) for name in BALANCES}
    return report(f"balance/report_{seed}", students, seed=seed)


def measure() -> list[Row]:
    """One row per balance and seed."""
    rows = []
    for seed in SEEDS:
        scored = scores(report_stage(seed).output)
        for name in BALANCES:
            trained = training_row(student_stage(name, seed), SENTENCE)
            rows.append({"balance": name, "seed": seed} | trained | scored[name])
    return rows


def table(rows: Sequence[Row]) -> str:
    """Perplexity and score of each task, and of all."""
    header = ["", *(f"{task} ({PAIRS['long_tail'][task]:,} pairs)" for task in TASKS), "all"]
    texts = []
    for what, columns, digits in (
        ("perplexity of target tokens", [*(f"{t}_target_ppl" for t in TASKS), "target_ppl"], 1),
        ("score", [*(f"{task}_score" for task in TASKS), "score"], 3),
    ):
        body = []
        for name in BALANCES:
            found = [Estimate.of(values(rows, column, balance=name)) for column in columns]
            body.append([f"`{name}`", *(each.text(digits) for each in found)])
        texts.append(markdown([what, *header[1:]], body))
    return "\n\n".join(texts)


def plot(rows: Sequence[Row], figure: Any) -> None:
    """Loss of targets and score of each task and seed."""
    titles = {"target_loss": "loss of target tokens", "score": "score"}
    panels = figure.subplots(1, len(titles))
    for panel, (column, title) in zip(panels, titles.items(), strict=True):
        for number, name in enumerate(BALANCES):
            for place, task in enumerate(TASKS):
                found = values(rows, f"{task}_{column}", balance=name)
                x = [place + 0.2 * (number - 1)] * len(found)
                panel.plot(x, found, "o", color=f"C{number}", label=name if not place else None)
        panel.set_xticks(range(len(TASKS)), TASKS)
        panel.set_title(title)
    panels[0].legend()
