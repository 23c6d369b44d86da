"""How much of the gap between a student alone and its teacher does each objective close?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.studies.corpora import TASKS, corpus
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

QUESTION = "Which objective of distillation closes most of the gap to the teacher?"
SENTENCE = 8 * 16  # tokens


@dataclass(frozen=True)
class Mixture:
    """The tasks that are trained.

    Attributes:
        overrides: Of all runs.
        steps: Of all runs: as in the paper, teacher and students are trained equally long.
        tasks: That are scored.
    """

    overrides: str
    steps: int
    tasks: tuple[str, ...]


MIXTURES = {
    "mixture": Mixture("", 800, TASKS),
    "single": Mixture("data.task_weights={pose:1}", 400, ("pose",)),
}
# Name -> overrides of `delvm train experiment=distill_student`.
OBJECTIVES = {
    "forward_kl": "",
    "kd_weight_4": "module.loss.kd_weight=4",
    "reverse_kl": "module/loss=reverse_kl",
    "skewed_kl": "module/loss=skewed_kl",
    "jensen_shannon": "module/loss=jensen_shannon",
    "top_k": "module/loss=top_k",
    "clusters": "module/loss=clusters",
    "selective": "module/loss=selective",
    "hidden_states": "module/loss=hidden_states",
    "hidden_states_4": "module/loss=hidden_states module.loss.kd_weight=4",
    "hidden_states_w20": "module/loss=hidden_states module.loss.hidden.weight=20",
    "on_policy": "module/on_policy=default module.on_policy.fraction=0.25",
    # VarKD: on-policy samples, of which the half is kept that the teacher is surest of, and codes
    # that stand for nearly the same patch merged.
    "on_policy_selective_clusters": "module/on_policy=default module.on_policy.fraction=0.25 "
    "module/on_policy/selection=tokens module.on_policy.selection.fraction=0.5 "
    "module/loss=clusters",
}
STUDENTS = ("alone", "alone_equal_compute", *OBJECTIVES)
# Those that three seeds did not tell apart have more.
REPEATED = ("alone", "forward_kl", "hidden_states_4", "hidden_states_w20")
ALL_SEEDS = range(8)


def stages() -> Iterator[Stage]:
    """The corpus, both teachers, all students, and a report of each seed."""
    yield from corpus("full")
    for mixture in MIXTURES:
        yield teacher_stage(mixture)
        for seed in ALL_SEEDS:
            yield from (student_stage(mixture, name, seed) for name in students(seed))
            yield report_stage(mixture, seed)


def students(seed: int) -> tuple[str, ...]:
    """The students that are trained with a seed."""
    return STUDENTS if seed in SEEDS else REPEATED


def teacher_stage(mixture: str = "mixture") -> Stage:
    """The teacher of a mixture."""
    return training(f"distill/{mixture}/teacher", "distill_teacher", overrides=_overrides(mixture))


def student_stage(mixture: str, name: str, seed: int) -> Stage:
    """A student of one objective and seed."""
    path = f"distill/{mixture}/{name}_{seed}"
    if name not in OBJECTIVES:
        factor = 1.0 if name == "alone" else preset().equal_compute
        overrides = _overrides(mixture, factor)
        return training(path, "distill_alone", seed=seed, overrides=overrides)
    overrides = f"{_overrides(mixture)} {OBJECTIVES[name]}".strip()
    teacher = teacher_stage(mixture)
    return training(path, "distill_student", seed=seed, teacher=teacher, overrides=overrides)


def _overrides(mixture: str, factor: float = 1.0) -> str:
    setting = MIXTURES[mixture]
    steps = round(setting.steps * factor)
    words = f"trainer.max_steps={steps} trainer.val_check_interval={steps} {setting.overrides}"
    return words.rstrip()


def report_stage(mixture: str, seed: int) -> Stage:
    """The answers of all students of a seed, and of their teacher."""
    scored = {name: student_stage(mixture, name, seed) for name in students(seed)}
    scored["teacher"] = teacher_stage(mixture)
    path = f"distill/{mixture}/report_{seed}"
    return report(path, scored, seed=seed, tasks=MIXTURES[mixture].tasks)


def measure() -> list[Row]:
    """One row per mixture, run and seed; the teacher is at seed 0."""
    rows = []
    for mixture in MIXTURES:
        teacher = teacher_stage(mixture)
        reports = [scores(report_stage(mixture, seed).output) for seed in ALL_SEEDS]
        labels = {"mixture": mixture, "run": "teacher", "seed": 0}
        rows.append(labels | training_row(teacher, SENTENCE) | reports[0]["teacher"])
        for name in STUDENTS:
            for seed in [seed for seed in ALL_SEEDS if name in students(seed)]:
                labels = {"mixture": mixture, "run": name, "seed": seed}
                used = teacher.output if name in OBJECTIVES else None
                trained = training_row(student_stage(mixture, name, seed), SENTENCE, used)
                rows.append(labels | trained | reports[seed][name])
    return rows


def shares(rows: Sequence[Row], mixture: str, name: str, column: str) -> Estimate:
    """The part of the teacher's gap in a column that a run closes, over seeds."""
    alone, found = (values(rows, column, mixture=mixture, run=each) for each in ("alone", name))
    (teacher,) = values(rows, column, mixture=mixture, run="teacher")
    return gap_closed(alone[: len(found)], found, teacher)


def table(rows: Sequence[Row]) -> str:
    """Losses, parts of the teacher's gap, and scores of both mixtures; then pairs of objectives."""
    gap = "of the gap (95%)"
    header = ["seeds", "loss", "perplexity", gap, "loss of targets", gap, "score", "TFLOP"]
    texts = []
    for mixture in MIXTURES:
        body = []
        for name in ("teacher", *STUDENTS):
            columns = {
                key: Estimate.of(values(rows, key, mixture=mixture, run=name))
                for key in ("loss", "ppl", "target_loss", "score", "tflops")
            }
            share = dict.fromkeys(("loss", "target_loss"), "100%" if name == "teacher" else "0%")
            if name not in ("teacher", "alone"):
                for key in share:
                    share[key] = shares(rows, mixture, name, key).interval(scale=100) + " %"
            seeds = str(len(values(rows, "loss", mixture=mixture, run=name)))
            body.append([
                f"`{name}`", seeds, columns["loss"].text(), columns["ppl"].text(1), share["loss"],
                columns["target_loss"].text(), share["target_loss"], columns["score"].text(),
                f"{columns['tflops'].mean:.1f}",
            ])  # fmt: skip
        texts.append(markdown([mixture, *header], body))
    return "\n\n".join([*texts, differences(rows)])


def differences(rows: Sequence[Row]) -> str:
    """Objectives less plain KL, seed by seed."""
    columns = {"loss": "loss", "target_loss": "loss of targets", "score": "score"}
    body = []
    for mixture in MIXTURES:
        for name in REPEATED[2:]:
            cells = [
                Estimate.of(
                    a - b
                    for a, b in zip(
                        values(rows, column, mixture=mixture, run=name),
                        values(rows, column, mixture=mixture, run="forward_kl"),
                        strict=True,
                    )
                ).interval(digits=3)
                for column in columns
            ]
            body.append([f"{mixture}: `{name}` - `forward_kl`", *cells])
    return markdown(["seed by seed (95%)", *columns.values()], body)


def plot(rows: Sequence[Row], figure: Any) -> None:
    """The loss of each seed, one panel per mixture."""
    for panel, mixture in zip(figure.subplots(1, len(MIXTURES)), MIXTURES, strict=True):
        for place, name in enumerate(reversed(STUDENTS)):
            found = values(rows, "loss", mixture=mixture, run=name)
            panel.plot(found, [place] * len(found), "o", alpha=0.7, color="C0")
        (teacher,) = values(rows, "loss", mixture=mixture, run="teacher")
        panel.axvline(teacher, color="C1", label="teacher")
        panel.set_yticks(range(len(STUDENTS)), reversed(STUDENTS))
        panel.set_xlabel(f"loss, {mixture}")
        panel.legend(loc="lower left")
