"""Write the model cards of the shipped weights, from their configs and the report next to here.

Run `write_cards.py` after `delvm evaluate` (README.md has the commands).
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from delvm.data.sources.shapes.photographs import HELD_OUT, TRAIN
from delvm.interop.load import SHIPPED_DIR, load_student, load_tokenizer
from delvm.interop.model_card import student_rows, tokenizer_rows
from delvm.storage import write_text

RESULTS = Path(__file__).resolve().parent / "report/results.json"
# Name of the weights, what they are, and their name in the report.
CARDS = (
    (
        "shapes",
        "A tokenizer and a student for images of 64 px, small enough for a CPU. The student was "
        "distilled from `shapes_teacher`.",
        "student",
    ),
    (
        "shapes_teacher",
        "The teacher of the student `shapes`: twice its layers, and the same tokenizer.",
        "teacher",
    ),
)
_TEXT = """# DeLVM `{name}`

{purpose}

{facts}

## Use

{use}

## Training

On pairs of the source `shapes`: procedural scenes of shapes and people, with textures and
backgrounds cut from {photos} photographs that scikit-image and scikit-learn distribute; {held_out}
others are held out. Tasks: {tasks}. The commands, and what was tried,
are in experiments/shapes of the repository.

## Scores

{queries} held-out queries per task with prompts of {shots} pairs; mean and 95% bootstrap interval.
"Of the gap" is the part of the way from the best trivial baseline to the tokenizer's ceiling.

{scores}

## Limits

The weights demonstrate the method, at 64 px. They know the four tasks above on synthetic scenes and
are of little use on other photographs and tasks: three pairs of a new task are hardly read.

## License

MIT, as DeLVM.
"""


def card(name: str, purpose: str, student: str) -> str:
    """The card of shipped weights.

    Args:
        name: of the weights.
        purpose: what they are, a sentence or two.
        student: their name in the report.
    """
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    has_tokenizer = (SHIPPED_DIR / name / "tokenizer").is_dir()
    rows = student_rows(load_student(name))
    if has_tokenizer:
        rows += tokenizer_rows(load_tokenizer(name))
    code = (
        f'import delvm\n\ntokenizer = delvm.load_tokenizer("shapes")\n'
        f'student = delvm.load_student("{name}")\nprompter = delvm.Prompter(tokenizer, student)'
    )
    settings = results["settings"]
    return _TEXT.format(
        name=name,
        purpose=purpose,
        facts=_table(("", ""), rows),
        use=f"```python\n{code}\n```",
        photos=len(TRAIN),
        held_out=len(HELD_OUT),
        tasks=", ".join(results["tasks"]),
        queries=settings["num_queries"],
        shots=settings["num_shots"],
        scores=scores(results, student),
    )


def scores(results: dict[str, Any], student: str) -> str:
    """A row per task: the score between the best baseline and the ceiling, and the gap closed."""
    body = []
    for task, result in results["tasks"].items():
        metric, best = result["primary_metric"], result["best_baseline"]
        mine = result["students"][student]
        baseline = result["baselines"][best]["round_trip"][metric]["mean"]
        ceiling = result["ceiling"][metric]["mean"]
        gap = mine["gap_closed"]
        body.append(
            (
                task,
                metric,
                f"{baseline:.3g} ({best.replace('_', ' ')})",
                interval(mine["scores"][metric]),
                f"{ceiling:.3g}",
                f"{gap['mean']:.0%} ({gap['low']:.0%} to {gap['high']:.0%})",
            )
        )
    return _table(("task", "metric", "baseline", "answers", "ceiling", "of the gap"), body)


def interval(score: dict[str, float]) -> str:
    """A mean and its interval."""
    return f"{score['mean']:.3g} ({score['low']:.3g} to {score['high']:.3g})"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    names = list(header)
    lines = [names, ["---"] * len(names), *map(list, rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Write the README.md of each."""
    for name, purpose, student in CARDS:
        write_text(SHIPPED_DIR / name / "README.md", card(name, purpose, student))


if __name__ == "__main__":
    main()
