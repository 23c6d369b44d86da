"""Compare tokenizer settings by what a student learns on their tokens.

`compare.py run [NAME ...]` trains and evaluates, and resumes where it was interrupted.
`compare.py table` collects the results. Each stage is one `delvm` command.
"""

import argparse
import csv
import json
import math
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from delvm.evaluation import read_metrics
from delvm.evaluation.training_curves import read_history
from delvm.storage import atomic_path, write_json

HERE = Path(__file__).parent
OUT = Path("outputs/tokenizer_settings")
TASKS = ("segmentation", "pose", "derain", "deblur")
METRICS = {"segmentation": "miou", "pose": "pck", "derain": "psnr", "deblur": "psnr"}


@dataclass(frozen=True)
class Setting:
    """What differs from the first setting.

    Attributes:
        training: Overrides of the tokenizer's training.
        codebook_size, code_dim: Of the tokenizer.
        seeds: Of tokenizer and student.
    """

    training: str = ""
    codebook_size: int = 1024
    code_dim: int = 32
    seeds: tuple[int, ...] = (0,)


SETTINGS = {
    "plain": Setting(seeds=(0, 1, 2)),
    "no_reset": Setting("module.dead_code_after=null", seeds=(0, 1, 2)),
    "reset_by_error": Setting("module.dead_code_reset=error", seeds=(0, 1, 2)),
    "codebook_256": Setting(codebook_size=256),
    "codebook_4096": Setting(codebook_size=4096),
    "narrow": Setting(code_dim=8, seeds=(0, 1, 2)),
    "discriminator": Setting("module.disc_weight=0.1 module.disc_start=200", seeds=(0, 1, 2)),
}

COLUMNS = (
    "setting", "seed", "overrides", "psnr", "ssim", "ms_ssim", "codebook_size", "codes_used",
    "codebook_perplexity", "entropy_bits_per_pixel", "student_target_loss",
    "student_bits_per_pixel",
    *(f"{task}_{what}" for task in TASKS for what in ("ceiling", "answer", "gap_closed")),
    "score", "minutes",
)  # fmt: skip


def stages(setting: Setting, seed: int, folder: Path) -> Iterator[tuple[Path, str]]:
    """(path that a stage writes last, its command) in order."""
    size = (
        f"tokenizer.net.num_embeddings={setting.codebook_size} "
        f"tokenizer.net.quantized_embed_dim={setting.code_dim}"
    )
    yield (
        folder / "tokenizer" / "tokenizer",
        f"train experiment=tokenizer_shapes_64 seed={seed} output_dir={folder}/tokenizer {size} "
        "trainer.max_steps=500 trainer.val_check_interval=250 overwrite=true "
        f"{setting.training}",
    )
    yield (
        folder / "tokenizer_report" / "metrics.json",
        f"evaluate mode=tokenizer tokenizer={folder}/tokenizer "
        f"output_dir={folder}/tokenizer_report tasks=[{','.join(TASKS)}] num_queries=128",
    )
    yield (
        folder / "tokens" / "test" / "segmentation" / "manifest.json",
        f"encode tokenizer={folder}/tokenizer output_dir={folder}/tokens balance=augment "
        "balance.examples_per_task=2500",
    )
    yield (
        folder / "student" / "student",
        f"train experiment=student_shapes_64 seed={seed} data.path={folder}/tokens "
        f"output_dir={folder}/student {size} student.net.vocab_size={setting.codebook_size} "
        f"student.net.codebook_dim={setting.code_dim} module.token_noise=1.0 "
        "data.task_weights={segmentation:1,pose:1,derain:4,deblur:1} "
        "trainer.max_steps=800 trainer.val_check_interval=400 overwrite=true",
    )
    yield (
        folder / "report" / "metrics.json",
        f"evaluate tokenizer={folder}/tokenizer students.student={folder}/student "
        f"output_dir={folder}/report tasks=[{','.join(TASKS)}] num_queries=64",
    )


def run(names: list[str]) -> None:
    """Run the stages that are not done yet.

    Args:
        names: Settings; empty means all.
    """
    # Seed 0 of all settings first: a comparison is possible before all seeds are done.
    jobs = [(name, seed) for name in names or SETTINGS for seed in SETTINGS[name].seeds]
    for name, seed in sorted(jobs, key=lambda job: job[1]):
        folder = OUT / f"{name}_{seed}"
        for index, (result, command) in enumerate(stages(SETTINGS[name], seed, folder)):
            if result.exists():
                continue
            print(f"{name}, seed {seed}: delvm {command}", flush=True)
            start = time.monotonic()
            subprocess.run([sys.executable, "-m", "delvm", *shlex.split(command)], check=True)
            seconds = time.monotonic() - start
            write_json(folder / f"seconds_{index}.json", {"seconds": seconds})
            print(f"{name}, seed {seed}: {tqdm.format_interval(seconds)}", flush=True)


def read_row(name: str, seed: int) -> dict[str, Any] | None:
    """The results of a setting; None if it is not finished."""
    setting, folder = SETTINGS[name], OUT / f"{name}_{seed}"
    if not (folder / "report" / "metrics.json").exists():
        return None
    reconstruction = read_metrics(folder / "tokenizer_report" / "metrics.json")["all"]
    evaluation = read_metrics(folder / "report" / "metrics.json")
    target_loss = read_history(folder / "student" / "metrics.csv")["val/target_loss"][-1][1]
    seconds = [json.loads(path.read_text())["seconds"] for path in folder.glob("seconds_*.json")]
    codes, settings = reconstruction["codes"], evaluation["settings"]
    tokens_per_pixel = settings["tokens_per_image"] / settings["image_size"] ** 2
    overrides = [setting.training] if setting.training else []
    if (setting.codebook_size, setting.code_dim) != (1024, 32):
        overrides.append(f"{setting.codebook_size} codes of dimension {setting.code_dim}")
    row = {
        "setting": name,
        "seed": seed,
        "overrides": "; ".join(overrides),
        **{metric: reconstruction[metric]["mean"] for metric in ("psnr", "ssim", "ms_ssim")},
        "codebook_size": codes["codebook_size"],
        "codes_used": codes["num_used"],
        "codebook_perplexity": codes["perplexity"],
        "entropy_bits_per_pixel": codes["entropy_bits_per_pixel"],
        "student_target_loss": target_loss,
        "student_bits_per_pixel": target_loss / math.log(2) * tokens_per_pixel,
        "minutes": sum(seconds) / 60,
    }
    for task, metric in METRICS.items():
        result = evaluation["tasks"][task]
        student, baselines = result["students"]["student"], result["baselines"].values()
        row[f"{task}_ceiling"] = result["ceiling"][metric]["mean"]
        row[f"{task}_answer"] = student["scores"][metric]["mean"]
        row[f"{task}_gap_closed"] = student["gap_closed"]["mean"]
        row[f"{task}_floor"] = max(forms["raw"][metric]["mean"] for forms in baselines)
    return row


def add_scores(rows: list[dict[str, Any]]) -> None:
    """Add a score to each row, a mean over tasks: 0 is the floor, 1 the best ceiling.

    The floor is the best baseline before the tokenizer's round trip, and the ceiling is the best of
    all settings: so a worse tokenizer gains nothing from its own lower ceiling.
    """
    for row in rows:
        fractions = []
        for task in TASKS:
            top, floor = max(each[f"{task}_ceiling"] for each in rows), row[f"{task}_floor"]
            fractions.append((row[f"{task}_answer"] - floor) / (top - floor))
        row["score"] = statistics.mean(fractions)
    for row in rows:
        for task in TASKS:
            del row[f"{task}_floor"]


def write_table() -> None:
    """Write settings.csv and settings.png next to this file, and print the table."""
    rows = [
        row
        for name, setting in SETTINGS.items()
        for seed in setting.seeds
        if (row := read_row(name, seed))
    ]
    add_scores(rows)
    with (
        atomic_path(HERE / "settings.csv") as tmp,
        tmp.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            rounded = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()}
            writer.writerow(rounded)
    plot(rows)
    shown = ("score", "psnr", "codes_used", "codebook_perplexity", "student_bits_per_pixel")
    for row in rows:
        values = [f"{row[key]:.4g}" for key in shown]
        answers = [f"{task} {row[f'{task}_answer']:.3g}" for task in TASKS]
        print(f"{row['setting']} {row['seed']}:", *values, "|", *answers)
    print(f"table and plot: {HERE}")


def plot(rows: list[dict[str, Any]]) -> None:
    """Write settings.png: one panel per task, the student's scores and the tokenizer's ceiling."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    names = list(dict.fromkeys(row["setting"] for row in rows))
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, (task, metric) in zip(panels, METRICS.items(), strict=True):
        for column, color in (("ceiling", "#9aa3ad"), ("answer", "#2e5eaa")):
            for y, name in enumerate(names):
                values = [float(r[f"{task}_{column}"]) for r in rows if r["setting"] == name]
                axes.plot(values, [y] * len(values), "o", color=color, alpha=0.8)
                axes.plot([statistics.mean(values)], [y], "|", color=color, markersize=16)
        axes.set_title(f"{task}, {metric}")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(range(len(names)), names)
    figure.axes[0].invert_yaxis()
    figure.suptitle("Scores of each tokenizer's student (blue), and the tokenizer's ceiling (gray)")
    with atomic_path(HERE / "settings.png") as tmp:
        figure.savefig(tmp, dpi=110)


def main(words: list[str]) -> None:
    """Train and evaluate, or collect the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("run", "table"))
    parser.add_argument(
        "names", nargs="*", metavar="NAME", choices=[*SETTINGS, []], help="settings (default: all)"
    )
    arguments = parser.parse_args(words)
    if arguments.command == "run":
        run(arguments.names)
    else:
        write_table()


if __name__ == "__main__":
    main(sys.argv[1:])
