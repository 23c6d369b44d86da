"""The two kinds of stages that all studies have: a training run, and a report on several."""

from collections.abc import Mapping

from experiments.studies.corpora import TASKS, tokens_done, tokens_path
from experiments.studies.stages import Stage


def training(
    path: str,
    experiment: str,
    *,
    seed: int = 0,
    corpus: str = "full",
    balance: str = "none",
    teacher: Stage | None = None,
    start: Stage | None = None,
    overrides: str = "",
) -> Stage:
    """A training run of a student.

    Args:
        path: Its directory, relative to OUT.
        experiment: Of `delvm train`.
        seed: Of its weights and the order of its data.
        corpus, balance: What it reads, see `experiments.studies.corpora`.
        teacher: That it is distilled from.
        start: Whose weights it starts from.
        overrides: Further ones.
    """
    words = [f"train experiment={experiment} seed={seed} overwrite=true output_dir=OUT/{path}"]
    words += [f"data.path=OUT/{tokens_path(corpus, balance)}"]
    needs = [tokens_done(corpus, balance)]
    if teacher is not None:
        words += [f"teacher.checkpoint=OUT/{teacher.output}"]
        needs += [teacher.output]
    if start is not None:
        words += [f"init_from=OUT/{start.output}"]
        needs += [start.output]
    words += [overrides] if overrides else []
    return Stage(f"{path}/student", " ".join(words), tuple(needs))


def report(
    path: str, students: Mapping[str, Stage], *, seed: int = 0, tasks: tuple[str, ...] = TASKS
) -> Stage:
    """The scores of students on 128 queries of each task.

    Args:
        path: The directory of the report, relative to OUT.
        students: Name in the report -> the stage that trains it.
        seed: Of the prompts.
        tasks: That are scored.
    """
    words = " ".join(f"students.{name}=OUT/{stage.output}" for name, stage in students.items())
    return Stage(
        f"{path}/metrics.json",
        f"evaluate input_dir=OUT/pairs/full tokenizer=OUT/tokenizer output_dir=OUT/{path} "
        f"tasks=[{','.join(tasks)}] num_queries=128 batch_size=128 seed={seed} {words}",
        tuple(stage.output for stage in students.values()),
    )
