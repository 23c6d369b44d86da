"""The two students of `make demo` with three seeds: does the teacher help beyond their spread?"""

from collections.abc import Iterator, Sequence
from typing import Any

from experiments.demo.run import STAGES
from experiments.studies.corpora import TASKS
from experiments.studies.measure import (
    SEEDS,
    Estimate,
    Row,
    markdown,
    scores,
    training_row,
    values,
)
from experiments.studies.stages import Stage

QUESTION = "In the demo, does the distilled student beat its twin beyond the spread of seeds?"
SENTENCE = 8 * 16  # tokens
# Name -> stage of the demo.
STUDENTS = {
    "distilled": "student",
    "alone": "student_no_kd",
    "alone_equal_compute": "student_no_kd",
}
# As many operations as the distilled student's steps and its teacher's forward passes.
EQUAL_COMPUTE = "trainer.max_steps=778 trainer.val_check_interval=389"
_COMMANDS = dict(STAGES)
_LAST = {
    "pairs": "pairs/test/edges/manifest.json",
    "tokenizer": "tokenizer/tokenizer",
    "tokens": "tokens/test/segmentation/manifest.json",
    "teacher": "teacher/student",
}


def stages() -> Iterator[Stage]:
    """The demo's own stages up to its teacher, then both students with each seed."""
    done: tuple[str, ...] = ()
    for name, last in _LAST.items():
        command = _COMMANDS[name].replace("OUT", "OUT/demo")
        yield Stage(f"demo/{last}", f"{command} overwrite=true", done)
        done = (f"demo/{last}",)
    for seed in SEEDS:
        yield from (student_stage(name, seed) for name in STUDENTS)
        yield report_stage(seed)


def student_stage(name: str, seed: int) -> Stage:
    """One of the demo's students, with a seed of its own."""
    stage = STUDENTS[name]
    command = _COMMANDS[stage].replace(f"output_dir=OUT/{stage}", f"output_dir=OUT/{name}_{seed}")
    if name == "alone_equal_compute":
        command = f"{command} {EQUAL_COMPUTE}"
    return Stage(
        f"demo/{name}_{seed}/student",
        f"{command.replace('OUT', 'OUT/demo')} seed={seed} overwrite=true",
        (f"demo/{_LAST['teacher']}",),
    )


def report_stage(seed: int) -> Stage:
    """The answers of both students and of the teacher; prompts are those of the demo."""
    runs = {name: f"demo/{name}_{seed}" for name in STUDENTS} | {"teacher": "demo/teacher"}
    students = " ".join(f"students.{name}=OUT/{path}" for name, path in runs.items())
    return Stage(
        f"demo/report_{seed}/metrics.json",
        f"evaluate input_dir=OUT/demo/pairs tokenizer=OUT/demo/tokenizer tasks=[{','.join(TASKS)}] "
        f"output_dir=OUT/demo/report_{seed} {students}",
        tuple(student_stage(name, seed).output for name in STUDENTS),
    )


def measure() -> list[Row]:
    """One row per student and seed; the teacher is at seed 0."""
    rows = []
    for seed in SEEDS:
        scored = scores(report_stage(seed).output)
        for name in STUDENTS:
            teacher = f"demo/{_LAST['teacher']}" if name == "distilled" else None
            trained = training_row(student_stage(name, seed), SENTENCE, teacher)
            rows.append({"run": name, "seed": seed} | trained | scored[name])
    trained = training_row(Stage(f"demo/{_LAST['teacher']}", ""), SENTENCE)
    scored = scores(report_stage(0).output)
    return [*rows, {"run": "teacher", "seed": 0} | trained | scored["teacher"]]


def table(rows: Sequence[Row]) -> str:
    """Losses and scores."""
    columns = ("loss", "target_loss", *(f"{task}_score" for task in TASKS), "score")
    body = [
        [f"`{name}`", *(Estimate.of(values(rows, column, run=name)).text() for column in columns)]
        for name in ("teacher", *STUDENTS)
    ]
    return markdown(["", "loss", "loss of targets", *TASKS, "mean score"], body)


def plot(rows: Sequence[Row], figure: Any) -> None:
    """Loss of targets and mean score of each seed."""
    titles = {"target_loss": "loss of target tokens", "score": "mean score"}
    for panel, (column, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for place, name in enumerate(STUDENTS):
            found = values(rows, column, run=name)
            panel.plot(found, [place] * len(found), "o", alpha=0.7, color=f"C{place}")
        (teacher,) = values(rows, column, run="teacher")
        panel.axvline(teacher, color="gray", label="teacher")
        panel.set_yticks(range(len(STUDENTS)), list(STUDENTS))
        panel.set_ylim(-0.5, len(STUDENTS) - 0.5)
        panel.set_xlabel(title)
        panel.legend()
