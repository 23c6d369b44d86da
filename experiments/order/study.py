"""Tasks shuffled, or one after another: what is forgotten?"""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.studies.corpora import TASKS, corpus
from experiments.studies.measure import SEEDS, Estimate, Row, markdown, training_row, values
from experiments.studies.runs import training
from experiments.studies.stages import Stage

QUESTION = "What is forgotten when tasks are learned one after another?"
SENTENCE = 8 * 16  # tokens
STEPS = "trainer.max_steps=200 trainer.val_check_interval=200"
# Both start each of the four parts from the weights of the part before, with the same schedule.
ORDERS = ("shuffled", "one_by_one")


def stages() -> Iterator[Stage]:
    """Four parts of training in each order."""
    yield from corpus("full")
    for seed in SEEDS:
        for order in ORDERS:
            yield from (part_stage(order, seed, part) for part in range(len(TASKS)))


def part_stage(order: str, seed: int, part: int) -> Stage:
    """One part of a training; its data starts again, in another order."""
    return training(
        f"order/{order}_{seed}_{part}",
        "distill_alone",
        seed=10 * seed + part,
        start=part_stage(order, seed, part - 1) if part else None,
        overrides=f"{STEPS} {_weights(part)}" if order == "one_by_one" else STEPS,
    )


def _weights(part: int) -> str:
    # What has no weight is not validated; 1 in 10,000 sentences teaches nothing in 200 steps.
    weights = (f"{task}:{1 if task == TASKS[part] else 1e-4}" for task in TASKS)
    return f"data.task_weights={{{','.join(weights)}}}"


def measure() -> list[Row]:
    """One row per order, seed and part."""
    return [
        {"order": order, "seed": seed, "part": part}
        | training_row(part_stage(order, seed, part), SENTENCE)
        for order in ORDERS
        for seed in SEEDS
        for part in range(len(TASKS))
    ]


def table(rows: Sequence[Row]) -> str:
    """Loss of the targets of each task after each part."""
    body = []
    for order in ORDERS:
        for part, task in enumerate(TASKS):
            learned = task if order == "one_by_one" else "all"
            cells = [
                Estimate.of(values(rows, f"{t}_target_loss", order=order, part=str(part))).text()
                for t in TASKS
            ]
            body.append([f"{order}, after part {part + 1} ({learned})", *cells])
    return markdown(["loss of target tokens", *TASKS], body)


def plot(rows: Sequence[Row], figure: Any) -> None:
    """Loss of the targets of each task after each part, one panel per order."""
    panels = figure.subplots(1, len(ORDERS), sharey=True)
    for panel, order in zip(panels, ORDERS, strict=True):
        for number, task in enumerate(TASKS):
            for seed in SEEDS:
                found = [
                    values(rows, f"{task}_target_loss", order=order, part=str(p), seed=str(seed))[0]
                    for p in range(len(TASKS))
                ]
                label = task if not seed else None
                panel.plot(range(1, 5), found, "o-", color=f"C{number}", alpha=0.6, label=label)
        panel.set_xticks(range(1, 5))
        panel.set_xlabel("part of the training")
        panel.set_title(order)
    panels[0].set_ylabel("loss of target tokens")
    panels[0].legend()
