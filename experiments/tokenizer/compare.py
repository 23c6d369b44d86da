"""Which tokenizer is the best to learn on: some settings, each with a student of its own.

Called as `compare.py run [NAME ...]`, which goes on where it was stopped, and `compare.py table`,
which gathers what there is. Each stage is one `delvm` command.
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

from delvm.storage import atomic_path, write_json

HERE = Path(__file__).parent
OUT = Path("outputs/tokenizer_settings")
TASKS = ("segmentation", "pose", "derain", "deblur")
METRICS = {"segmentation": "miou", "pose": "pck", "derain": "psnr", "deblur": "psnr"}


@dataclass(frozen=True)
class Setting:
    """What differs from the first setting, in the tokenizer's training and in its size."""

    training: str = ""
    codes: int = 1024
    width: int = 32
    seeds: tuple[int, ...] = (0,)


SETTINGS = {
    "plain": Setting(seeds=(0, 1, 2)),
    "no_revival": Setting("module.revive_after=null", seeds=(0, 1, 2)),
    "revive_by_error": Setting("module.revive_by=error", seeds=(0, 1, 2)),
    "codes_256": Setting(codes=256),
    "codes_4096": Setting(codes=4096),
    "narrow": Setting(width=8, seeds=(0, 1, 2)),
    "adversary": Setting("module.adversarial=0.1 module.adversarial_start=200", seeds=(0, 1, 2)),
}

COLUMNS = (
    "setting", "seed", "overrides", "psnr", "ssim", "ms_ssim", "codes", "codes_used",
    "code_perplexity", "entropy_bits_per_pixel", "student_target_loss", "student_bits_per_pixel",
    *(f"{task}_{what}" for task in TASKS for what in ("ceiling", "answer", "closed")),
    "score", "minutes",
)  # fmt: skip


def stages(setting: Setting, seed: int, folder: Path) -> Iterator[tuple[Path, str]]:
    """(what a stage leaves, its command) in order."""
    size = (
        f"tokenizer.net.num_embeddings={setting.codes} "
        f"tokenizer.net.quantized_embed_dim={setting.width}"
    )
    yield (
        folder / "tokenizer" / "tokenizer",
        f"train experiment=tokenizer_shapes_64 seed={seed} output={folder}/tokenizer {size} "
        "trainer.max_steps=500 trainer.val_every=250 overwrite=true "
        f"{setting.training}",
    )
    yield (
        folder / "tokenizer_report" / "metrics.json",
        f"evaluate subject=tokenizer tokenizer={folder}/tokenizer output={folder}/tokenizer_report "
        f"tasks=[{','.join(TASKS)}] queries=128",
    )
    yield (
        folder / "tokens" / "test" / "segmentation" / "manifest.json",
        f"encode tokenizer={folder}/tokenizer output={folder}/tokens balance=augment "
        "balance.examples_per_task=2500",
    )
    yield (
        folder / "student" / "student",
        f"train experiment=student_shapes_64 seed={seed} data.path={folder}/tokens "
        f"output={folder}/student {size} student.net.vocab_size={setting.codes} "
        f"student.net.codebook_dim={setting.width} module.misread=1.0 "
        "data.task_weights={segmentation:1,pose:1,derain:4,deblur:1} "
        "trainer.max_steps=800 trainer.val_every=400 overwrite=true",
    )
    yield (
        folder / "report" / "metrics.json",
        f"evaluate tokenizer={folder}/tokenizer students.student={folder}/student "
        f"output={folder}/report tasks=[{','.join(TASKS)}] queries=64",
    )


def run(names: list[str]) -> None:
    """Run the stages that are not done yet."""
    # First seeds first: the settings are comparable before the spread is known.
    jobs = [(name, seed) for name in names or SETTINGS for seed in SETTINGS[name].seeds]
    for name, seed in sorted(jobs, key=lambda job: job[1]):
        folder = OUT / f"{name}_{seed}"
        for number, (made, command) in enumerate(stages(SETTINGS[name], seed, folder)):
            if made.exists():
                continue
            print(f"{name}, seed {seed}: delvm {command}", flush=True)
            start = time.monotonic()
            subprocess.run([sys.executable, "-m", "delvm", *shlex.split(command)], check=True)
            spent = time.monotonic() - start
            write_json(folder / f"seconds_{number}.json", {"seconds": spent})
            print(f"{name}, seed {seed}: {tqdm.format_interval(spent)}", flush=True)


def row(name: str, seed: int) -> dict[str, Any] | None:
    """A setting's numbers, None where it has not been run to its end."""
    setting, folder = SETTINGS[name], OUT / f"{name}_{seed}"
    if not (folder / "report" / "metrics.json").exists():
        return None
    drawn = json.loads((folder / "tokenizer_report" / "metrics.json").read_text())["all"]
    answered = json.loads((folder / "report" / "metrics.json").read_text())
    with (folder / "student" / "metrics.csv").open() as file:
        losses = [float(x["val/target_loss"]) for x in csv.DictReader(file) if x["val/target_loss"]]
    spent = [json.loads(path.read_text())["seconds"] for path in folder.glob("seconds_*.json")]
    codes, tokens = drawn["codes"], answered["settings"]["tokens_per_image"]
    bits = losses[-1] / math.log(2) * tokens / answered["settings"]["image_size"] ** 2
    values = [setting.training] if setting.training else []
    if (setting.codes, setting.width) != (1024, 32):
        values.append(f"{setting.codes} codes of width {setting.width}")
    found = {
        "setting": name,
        "seed": seed,
        "overrides": "; ".join(values),
        **{metric: drawn[metric]["mean"] for metric in ("psnr", "ssim", "ms_ssim")},
        "codes": codes["codebook_size"],
        "codes_used": codes["num_used"],
        "code_perplexity": codes["perplexity"],
        "entropy_bits_per_pixel": codes["entropy_bits_per_pixel"],
        "student_target_loss": losses[-1],
        "student_bits_per_pixel": bits,
        "minutes": sum(spent) / 60,
    }
    for task, metric in METRICS.items():
        result = answered["tasks"][task]
        student = result["students"]["student"]
        found[f"{task}_ceiling"] = result["ceiling"][metric]["mean"]
        found[f"{task}_answer"] = student["scores"][metric]["mean"]
        found[f"{task}_closed"] = student["closed"]["mean"]
        forms = result["baselines"].values()
        found[f"{task}_floor"] = max(form["raw"][metric]["mean"] for form in forms)
    return found


def standings(rows: list[dict[str, Any]]) -> None:
    """Add to each row its score: how far its answers go, the mean over tasks.

    0 is the best baseline as it is, which no tokenizer touches; 1 is the best ceiling of all
    settings: so a tokenizer that draws worse gains nothing by its own lower ceiling.
    """
    for each in rows:
        shares = []
        for task in TASKS:
            top, floor = max(row[f"{task}_ceiling"] for row in rows), each[f"{task}_floor"]
            shares.append((each[f"{task}_answer"] - floor) / (top - floor))
        each["score"] = statistics.mean(shares)
    for each in rows:
        for task in TASKS:
            del each[f"{task}_floor"]


def table() -> None:
    """Write settings.csv and settings.png beside this file, and print the table."""
    rows = [
        found
        for name, setting in SETTINGS.items()
        for seed in setting.seeds
        if (found := row(name, seed))
    ]
    standings(rows)
    with (
        atomic_path(HERE / "settings.csv") as part,
        part.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for each in rows:
            short = {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in each.items()}
            writer.writerow(short)
    draw(rows)
    shown = ("score", "psnr", "codes_used", "code_perplexity", "student_bits_per_pixel")
    for each in rows:
        numbers = [f"{each[key]:.4g}" for key in shown]
        answers = [f"{task} {each[f'{task}_answer']:.3g}" for task in TASKS]
        print(f"{each['setting']} {each['seed']}:", *numbers, "|", *answers)
    print(f"table and plot: {HERE}")


def draw(rows: list[dict[str, Any]]) -> None:
    """Answers of each setting's student beside the ceiling of its tokenizer, a panel a task."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    names = list(dict.fromkeys(each["setting"] for each in rows))
    for axes, (task, metric) in zip(
        figure.subplots(1, 4, sharey=True), METRICS.items(), strict=True
    ):
        for what, colour in (("ceiling", "#9aa3ad"), ("answer", "#2e5eaa")):
            for place, name in enumerate(names):
                values = [each[f"{task}_{what}"] for each in rows if each["setting"] == name]
                axes.plot(values, [place] * len(values), "o", color=colour, alpha=0.8)
                axes.plot([statistics.mean(values)], [place], "|", color=colour, markersize=16)
        axes.set_title(f"{task}, {metric}")
        axes.grid(axis="x", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.set_yticks(range(len(names)), names)
    figure.axes[0].invert_yaxis()
    figure.suptitle("Answers of each tokenizer's student (blue) and the tokenizer's ceiling (grey)")
    with atomic_path(HERE / "settings.png") as part:
        figure.savefig(part, dpi=110)


def main(words: list[str]) -> None:
    """Run or gather, as the words say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=("run", "table"))
    parser.add_argument(
        "names", nargs="*", metavar="NAME", choices=[*SETTINGS, []], help="settings; none is all"
    )
    asked = parser.parse_args(words)
    if asked.verb == "run":
        run(asked.names)
    else:
        table()


if __name__ == "__main__":
    main(sys.argv[1:])
