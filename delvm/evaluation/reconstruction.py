"""Evaluate a tokenizer: reconstruction quality and codebook usage on held-out images.

Content of metrics.json besides title, settings and tokenizer (intervals as in `results.metrics`):
    tasks      task -> side (of a pair "input", "target") -> metric -> interval,
               and "codes" -> codebook usage
    all        the same over all images
    rfid       None without a feature network, or {"value", "num_images", "num_features",
               "fid_features"}
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from delvm.data.codebook_usage import CodebookUsage
from delvm.data.image_io import to_pil, to_tensor
from delvm.data.shards.manifest import load_manifests
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from delvm.evaluation.queries.query_set import decode, encode
from delvm.evaluation.report.reconstruction_report import render_report
from delvm.evaluation.scores import bootstrap
from delvm.evaluation.scores.fid import ReconstructionFID
from delvm.evaluation.shard_inspection import side_names
from delvm.inference.prompter import set_eval_mode
from delvm.interop.fingerprint import fingerprint
from delvm.models.protocols import TokenizerNet
from delvm.progress import Progress
from delvm.storage import StoragePath, atomic_path, write_json, write_text
from delvm.tasks import metrics
from delvm.viz.code_histogram import plot_code_histogram
from delvm.viz.image_grid import image_grid

METRICS = {"psnr": metrics.psnr, "ssim": metrics.ssim, "ms_ssim": metrics.ms_ssim}
NUM_SHOWN = 8  # the first images of a side are shown in the report
COLUMNS = ("task", "side", "metric", "mean", "low", "high", "n")


@dataclass
class ReconstructionStats:
    """Measurements on one side of a task's pairs.

    Attributes:
        counts: How often each code occurred, (V,).
        scores: metric -> batches of values, one per image.
        shown: (image, reconstruction) of the first ones.
    """

    counts: Tensor
    scores: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in METRICS})
    shown: list[tuple[Image.Image, Image.Image]] = field(default_factory=list)

    def update(
        self, tokenizer: TokenizerNet, pixels: Tensor, rfid: ReconstructionFID | None
    ) -> None:
        """Add images, pixels (B, 3, H, H) in [0, 1]."""
        ids = encode(tokenizer, pixels)
        reconstructions = decode(tokenizer, ids)
        for name, metric in METRICS.items():
            self.scores[name].append(metric(reconstructions, pixels))
        self.counts += torch.bincount(ids.flatten(), minlength=len(self.counts))
        if rfid is not None:
            rfid.update(pixels, reconstructions)
        if (missing := NUM_SHOWN - len(self.shown)) > 0:
            images = to_pil(pixels[:missing]), to_pil(reconstructions[:missing])
            self.shown += zip(*images, strict=True)

    def summary(self, seed: int, pixels_per_token: float) -> dict[str, Any]:
        """Intervals by metric, and the codebook usage."""
        values = {name: torch.cat(parts).double().numpy() for name, parts in self.scores.items()}
        return {
            **{name: bootstrap.mean_ci(each, seed).as_dict() for name, each in values.items()},
            "codes": CodebookUsage.of(self.counts).as_dict(pixels_per_token),
        }


TaskStats = dict[str, dict[str, ReconstructionStats]]  # task -> side -> measurements


def evaluate_tokenizer(
    input_dir: StoragePath,
    tokenizer: TokenizerNet,
    *,
    output_dir: str | Path,
    tasks: list[str] | None = None,
    num_queries: int = 100,
    seed: int = 0,
    batch_size: int = 32,
    fid_features: str | Path | None = None,
    origin: str = "origin not stated",
    title: str = "Tokenizer",
) -> dict[str, Any]:
    """Encode and decode held-out images, and report how close the reconstructions are.

    Args:
        input_dir: Root of image shards; the first pairs of "test" are used.
        output_dir: For metrics.json, scores.csv, report.html, codes.png and one TASK.png per task.
        tasks: None or empty: all tasks of the shards.
        num_queries: Pairs per task; inputs and targets are both reconstructed.
        seed: Of the bootstrap.
        fid_features: TorchScript file of the feature network for rFID; None skips rFID.
        origin: Where the weights come from, for the report.

    Returns:
        The content of metrics.json.

    Raises:
        UserError: Shards, tasks or features are missing or do not fit the tokenizer.
    """
    selected = _select_tasks(input_dir, tasks, tokenizer.resolution, num_queries)
    rfid = ReconstructionFID(fid_features, tokenizer.resolution) if fid_features else None
    stats = _measure(input_dir, selected, tokenizer, num_queries, batch_size, rfid)
    pixels_per_token = tokenizer.resolution**2 / tokenizer.tokens_per_image
    options = {
        "input_dir": str(input_dir),
        "num_queries": num_queries,
        "seed": seed,
        "batch_size": batch_size,
    }
    report: dict[str, Any] = {
        "title": title,
        "settings": options | _derived_settings(tokenizer),
        "tokenizer": {
            "origin": origin,
            "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
            "fingerprint": fingerprint(tokenizer),
        },
        "all": _merged(stats).summary(seed, pixels_per_token),
        "rfid": rfid and rfid.as_dict() | {"fid_features": str(fid_features)},
        "tasks": {
            task: {side: each.summary(seed, pixels_per_token) for side, each in sides.items()}
            for task, sides in stats.items()
        },
    }
    _write(Path(output_dir), report, stats)
    return report


def _derived_settings(tokenizer: TokenizerNet) -> dict[str, Any]:
    """Settings that follow from the tokenizer and from this package."""
    return {
        "image_size": tokenizer.resolution,
        "tokens_per_image": tokenizer.tokens_per_image,
        "codebook_size": tokenizer.codebook_size,
        "ms_ssim_scales": metrics.ms_ssim_scales(tokenizer.resolution),
        "bootstrap_resamples": bootstrap.RESAMPLES,
        "confidence": bootstrap.CONFIDENCE,
    }


def _select_tasks(
    root: StoragePath, names: list[str] | None, resolution: int, num_queries: int
) -> list[str]:
    manifests = load_manifests(root, "test", "images")
    if missing := sorted(set(names or []) - set(manifests)):
        raise UserError(
            f"no task '{missing[0]}' in {root}/test, only {', '.join(manifests)}: "
            f"set tasks=[{','.join(manifests)}]"
        )
    image_size = next(iter(manifests.values())).image_size
    if image_size != resolution:
        raise UserError(
            f"images of {image_size} px ({root}) != resolution {resolution} (tokenizer): set "
            f"input_dir=FOLDER to pairs of {resolution} px, or tokenizer=PATH"
        )
    selected = [name for name in manifests if not names or name in names]
    for name in selected:
        if (count := manifests[name].count) < num_queries:
            raise UserError(
                f"num_queries={num_queries}, but test/{name} holds {count} pairs: "
                f"set num_queries={count}"
            )
    return selected


def _measure(
    root: StoragePath,
    tasks: list[str],
    tokenizer: TokenizerNet,
    num_queries: int,
    batch_size: int,
    rfid: ReconstructionFID | None,
) -> TaskStats:
    set_eval_mode(tokenizer)
    codebook_size = tokenizer.codebook_size
    manifests = load_manifests(root, "test", "images")
    stats = {
        task: {
            name: ReconstructionStats(torch.zeros(codebook_size, dtype=torch.long))
            for name in side_names(manifests[task])
        }
        for task in tasks
    }
    total = num_queries * sum(map(len, stats.values()))
    with Progress(total, "evaluate", "images") as bar:
        for task, sides in stats.items():
            remaining = islice(read_examples(root, "test", task), num_queries)
            while examples := list(islice(remaining, batch_size)):
                for index, side in enumerate(sides.values()):
                    pixels = to_tensor([example.images[index] for example in examples])
                    side.update(tokenizer, pixels, rfid)
                    bar.update(len(examples), task)
    return stats


def _merged(stats: TaskStats) -> ReconstructionStats:
    """All sides of all tasks together."""
    sides = [side for task in stats.values() for side in task.values()]
    merged = ReconstructionStats(torch.stack([side.counts for side in sides]).sum(0))
    for name, batches in merged.scores.items():
        batches += [batch for side in sides for batch in side.scores[name]]
    return merged


def _rows(report: dict[str, Any]) -> Iterator[list[Any]]:
    """One row per value, as in COLUMNS; counts have no interval."""
    groups = [("all", "all", report["all"])]
    groups += [
        (task, side, summary)
        for task, sides in report["tasks"].items()
        for side, summary in sides.items()
    ]
    for task, side, summary in groups:
        for metric in METRICS:
            yield [task, side, metric, *(summary[metric][key] for key in COLUMNS[3:])]
        for name, value in summary["codes"].items():
            yield [task, side, f"codes_{name}", value, None, None, summary["codes"]["num_tokens"]]
    if rfid := report["rfid"]:
        yield ["all", "all", "rfid", rfid["value"], None, None, rfid["num_images"]]


def _write(output_dir: Path, report: dict[str, Any], stats: TaskStats) -> None:
    """Write all files, metrics.json last: a new metrics.json means that all files are new."""
    histogram = plot_code_histogram(_merged(stats).counts)
    grids = {
        task: image_grid(
            [list(row) for side in sides.values() for row in zip(*side.shown, strict=True)],
            row_titles=[text for side in sides for text in (side, "reconstruction")],
        )
        for task, sides in stats.items()
    }
    for name, image in {"codes": histogram, **grids}.items():
        with atomic_path(output_dir / f"{name}.png") as tmp:
            image.save(tmp)
    write_text(output_dir / "report.html", render_report(report, grids, histogram))
    with (
        atomic_path(output_dir / "scores.csv") as tmp,
        tmp.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([COLUMNS, *_rows(report)])
    write_json(output_dir / "metrics.json", report)
