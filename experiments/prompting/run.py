"""How much pairs, their selection, votes of several prompts, guidance and precision change answers.

Answers the same queries with the shipped weights in every setting and writes scores.csv and
scores.png next to this file. `--table` reads scores.csv instead of measuring.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from delvm import tasks
from delvm.data.image_io import to_tensor
from delvm.evaluation.queries.prompt_selection import PromptSelection, select_prompts
from delvm.evaluation.queries.query_set import build_query_set, decode
from delvm.evaluation.scores.scoring import generate_answers
from delvm.inference.decoding import SamplingConfig
from delvm.inference.engine import Engine
from delvm.interop.load import load_student, load_tokenizer
from delvm.progress import Progress
from delvm.storage import as_path, atomic_path

HERE = Path(__file__).resolve().parent
SEEDS = (0, 1, 2)  # of the prompts
NUM_QUERIES = 24  # per task
TASKS = ("segmentation", "pose", "derain", "deblur")  # of the shipped student


@dataclass(frozen=True)
class Setting:
    """Arguments of `delvm evaluate`; the defaults are its own."""

    num_shots: int = 3
    num_prompts: int = 1
    prompt_selection: str = PromptSelection.random
    guidance: float = 1.0
    precision: str = "fp32"

    @property
    def name(self) -> str:
        default = asdict(Setting())
        changed = [f"{key}={x}" for key, x in asdict(self).items() if x != default[key]]
        return " ".join(changed) or "default"


SETTINGS = (
    Setting(),
    Setting(num_shots=1),
    Setting(num_shots=2),
    Setting(num_prompts=2),
    Setting(num_prompts=4),
    Setting(prompt_selection=PromptSelection.nearest),
    Setting(num_prompts=4, prompt_selection=PromptSelection.nearest),
    Setting(guidance=0.0),
    Setting(guidance=1.5),
    Setting(guidance=2.0),
    Setting(guidance=3.0),
    Setting(precision="bf16"),
    Setting(precision="int8"),
)


def measure(pairs: str) -> Iterator[dict[str, Any]]:
    """The mean score of each task, setting and seed, over the same queries."""
    tokenizer = load_tokenizer("shapes")
    engines = {
        precision: Engine(load_student("shapes", precision=precision), max_prefixes=0)
        for precision in ("fp32", "bf16", "int8")
    }
    with Progress(len(TASKS) * len(SETTINGS) * len(SEEDS), "prompting", "scores") as bar:
        for task in TASKS:
            options: Any = {"num_queries": NUM_QUERIES, "num_shots": 1, "seed": 0, "batch_size": 32}
            query_set = build_query_set(as_path(pairs), task, tokenizer, **options)
            truth = to_tensor(list(query_set.ground_truth.images))
            metric = tasks.get(task).primary_metric
            default: dict[int, Any] = {}  # seed -> ids of the first setting
            for setting in SETTINGS:
                for seed in SEEDS:
                    indices = select_prompts(
                        setting.prompt_selection,
                        seed,
                        task,
                        query_set.queries.ids,
                        query_set.pool_inputs.ids,
                        tokenizer.codebook,
                        setting.num_shots,
                        setting.num_prompts,
                    )
                    ids = generate_answers(
                        engines[setting.precision],
                        tokenizer,
                        replace(query_set, example_indices=indices),
                        slice(0, NUM_QUERIES),
                        SamplingConfig(guidance=setting.guidance, seed=seed),
                    )
                    same = (ids == default.setdefault(seed, ids)).double().mean()
                    scores = tasks.get(task).score(decode(tokenizer, ids), truth)[metric]
                    yield {
                        "setting": setting.name,
                        **asdict(setting),
                        "task": task,
                        "metric": metric,
                        "seed": seed,
                        "mean": f"{np.nanmean(scores.numpy()):.5g}",
                        "queries": int((~scores.isnan()).sum()),
                        "same_tokens": f"{same.item():.4f}",
                    }
                    bar.update(1, f"{task}, {setting.name}")


def write_csv(rows: list[dict[str, Any]]) -> None:
    with (
        atomic_path(HERE / "scores.csv") as tmp,
        tmp.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def read_csv() -> list[dict[str, Any]]:
    with (HERE / "scores.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def summarize(rows: list[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Setting -> task -> mean and standard deviation over the seeds."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        of_setting = values.setdefault(row["setting"], {})
        of_setting.setdefault(row["task"], []).append(float(row["mean"]))
    return {
        setting: {task: (statistics.mean(x), statistics.stdev(x)) for task, x in of_task.items()}
        for setting, of_task in values.items()
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The summary in Markdown: a row for each setting, a column for each task.

    The last column is the fraction of tokens that equal the default's, over all tasks and seeds.
    """
    metrics = {row["task"]: row["metric"] for row in rows}
    lines = [
        f"| setting | {' | '.join(f'{task} ({metric})' for task, metric in metrics.items())} "
        "| same tokens |",
        "|---" * (len(metrics) + 2) + "|",
    ]
    for setting, scores in summarize(rows).items():
        cells = []
        for task, (mean, deviation) in scores.items():
            digits = 2 if metrics[task] == "psnr" else 3
            cells.append(f"{mean:.{digits}f} ± {deviation:.{digits}f}")
        same = [float(row["same_tokens"]) for row in rows if row["setting"] == setting]
        lines.append(f"| {setting} | {' | '.join(cells)} | {statistics.mean(same):.1%} |")
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]]) -> None:
    """Write scores.png: one panel per task, a dot for each seed and a bar for their mean."""
    from matplotlib.figure import Figure

    summary, metrics = summarize(rows), {row["task"]: row["metric"] for row in rows}
    names = list(summary)
    figure = Figure(figsize=(14, 4.2), layout="constrained")
    for axes, task in zip(figure.subplots(1, len(metrics), sharey=True), metrics, strict=True):
        for y, name in enumerate(names):
            mine = [float(r["mean"]) for r in rows if (r["setting"], r["task"]) == (name, task)]
            axes.plot(mine, [y] * len(mine), "o", color="#2e5eaa", alpha=0.6, markersize=4)
            axes.plot([summary[name][task][0]], [y], "|", color="#2e5eaa", markersize=14)
        axes.axvline(summary[names[0]][task][0], color="#9aa3ad", linewidth=1)
        axes.set_title(f"{task}, {metrics[task]}", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(range(len(names)), names)
    figure.axes[0].invert_yaxis()
    figure.suptitle("Scores with three seeds of prompts (dots) and their mean; gray: default")
    with atomic_path(HERE / "scores.png") as tmp:
        figure.savefig(tmp, dpi=100)


def main(words: list[str]) -> None:
    """Measure, or read what was measured; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", default="outputs/shapes/pairs", help="image shards")
    parser.add_argument("--table", action="store_true", help="read scores.csv")
    arguments = parser.parse_args(words)
    if not arguments.table:
        torch.set_num_threads(1)  # as fast as two for models this small, on a busy machine faster
        write_csv(list(measure(arguments.pairs)))
    rows = read_csv()
    plot(rows)
    print(table(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
