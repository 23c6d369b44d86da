"""How well a tokenizer draws what it is shown, and how it uses its codes.

What metrics.json holds beside title, settings and tokenizer (an interval is as in `results`):
    tasks      task -> side (of a pair "input", "target") -> metric -> interval,
               and "codes" -> use of the codes
    all        the same over all pictures
    rfid       None without an extractor, or {"value", "pictures", "features", "extractor"}
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
from delvm.evaluation import bootstrap
from delvm.evaluation.fid import RFID
from delvm.evaluation.query_set import decode, encode
from delvm.evaluation.report.reconstruction_report import page
from delvm.evaluation.shard_inspection import sides
from delvm.interop.fingerprint import fingerprint
from delvm.models.vqgan import VQGAN
from delvm.progress import Progress
from delvm.storage import StoragePath, atomic_path, write_json, write_text
from delvm.tasks import metrics
from delvm.viz.code_histogram import plot_code_histogram
from delvm.viz.image_grid import image_grid

SCORES = {"psnr": metrics.psnr, "ssim": metrics.ssim, "ms_ssim": metrics.ms_ssim}
SHOWN = 8  # the first pictures of a side, which the report shows
COLUMNS = ("task", "side", "metric", "mean", "low", "high", "n")


@dataclass
class Side:
    """What was measured on one side of a task's pairs.

    Attributes:
        scores: metric -> one value a picture.
        counts: how often each code occurred, (V,).
        shown: (picture, as drawn) of the first ones.
    """

    counts: Tensor
    scores: dict[str, list[Tensor]] = field(default_factory=lambda: {name: [] for name in SCORES})
    shown: list[tuple[Image.Image, Image.Image]] = field(default_factory=list)

    def add(self, tokenizer: VQGAN, pixels: Tensor, rfid: RFID | None) -> None:
        """Count pixels (B, 3, H, H) in [0, 1]."""
        ids = encode(tokenizer, pixels)
        drawn = decode(tokenizer, ids)
        for name, score in SCORES.items():
            self.scores[name].append(score(drawn, pixels))
        self.counts += torch.bincount(ids.flatten(), minlength=len(self.counts))
        if rfid is not None:
            rfid.add(pixels, drawn)
        if (room := SHOWN - len(self.shown)) > 0:
            pictures = to_pil(pixels[:room]), to_pil(drawn[:room])
            self.shown += zip(*pictures, strict=True)

    def numbers(self, seed: int, pixels_per_token: float) -> dict[str, Any]:
        """Intervals by metric, and the use of the codes."""
        values = {name: torch.cat(parts).double().numpy() for name, parts in self.scores.items()}
        return {
            **{name: bootstrap.mean(each, seed).as_dict() for name, each in values.items()},
            "codes": CodebookUsage.of(self.counts).as_dict(pixels_per_token),
        }


def run(
    input: StoragePath,
    tokenizer: VQGAN,
    *,
    output: Path,
    tasks: list[str] | None = None,
    queries: int = 100,
    seed: int = 0,
    batch_size: int = 32,
    extractor: Path | None = None,
    origin: str = "origin not stated",
    title: str = "Tokenizer",
) -> dict[str, Any]:
    """Encode and decode held-out pictures, and report how near they come.

    Args:
        input: Root of image shards; the first pairs of "test" are taken.
        output: Folder for metrics.json, scores.csv, report.html, codes.png and a TASK.png a task.
        tasks: None or empty takes all that the shards hold.
        queries: Pairs a task, of which both sides are drawn.
        seed: Of the bootstrap.
        extractor: TorchScript file of the features that rFID compares; None leaves rFID out.

    Returns:
        What metrics.json holds.

    Raises:
        UserError: Shards, tasks or the extractor are missing or do not fit the tokenizer.
    """
    c = tokenizer.config
    chosen = _chosen(input, tasks, c.resolution, queries)
    rfid = None if extractor is None else RFID(extractor, c.resolution)
    measured = _measure(input, chosen, tokenizer, queries, batch_size, rfid)
    area = c.resolution**2 / c.tokens_per_image
    asked = {"input": str(input), "queries": queries, "seed": seed, "batch_size": batch_size}
    report: dict[str, Any] = {
        "title": title,
        "settings": asked | _fixed(tokenizer),
        "tokenizer": {
            "origin": origin,
            "parameters": sum(parameter.numel() for parameter in tokenizer.parameters()),
            "fingerprint": fingerprint(tokenizer),
        },
        "all": _joined(measured).numbers(seed, area),
        "rfid": rfid and rfid.as_dict() | {"extractor": str(extractor)},
        "tasks": {
            task: {side: each.numbers(seed, area) for side, each in sides.items()}
            for task, sides in measured.items()
        },
    }
    _write(Path(output), report, measured)
    return report


def _fixed(tokenizer: VQGAN) -> dict[str, Any]:
    """Settings that the tokenizer and this package decide."""
    c = tokenizer.config
    return {
        "image_size": c.resolution,
        "tokens_per_image": c.tokens_per_image,
        "vocab_size": c.num_embeddings,
        "ms_ssim_scales": metrics.ms_ssim_scales(c.resolution),
        "bootstrap_resamples": bootstrap.RESAMPLES,
        "confidence": bootstrap.CONFIDENCE,
    }


def _chosen(root: StoragePath, names: list[str] | None, side: int, queries: int) -> list[str]:
    manifests = load_manifests(root, "test", "images")
    if missing := sorted(set(names or []) - set(manifests)):
        raise UserError(
            f"no task '{missing[0]}' in {root}/test, only {', '.join(manifests)}: "
            f"set tasks=[{','.join(manifests)}]"
        )
    size = next(iter(manifests.values())).image_size
    if size != side:
        raise UserError(
            f"pictures of {size} px ({root}) != resolution {side} (tokenizer): set input=FOLDER "
            f"to pairs of {side} px, or tokenizer=PATH"
        )
    chosen = [name for name in manifests if not names or name in names]
    for name in chosen:
        if (count := manifests[name].count) < queries:
            raise UserError(
                f"queries={queries}, but test/{name} holds {count} pairs: set queries={count}"
            )
    return chosen


def _measure(
    root: StoragePath,
    chosen: list[str],
    tokenizer: VQGAN,
    queries: int,
    batch_size: int,
    rfid: RFID | None,
) -> dict[str, dict[str, Side]]:
    tokenizer.eval()
    codes = tokenizer.config.num_embeddings
    manifests = load_manifests(root, "test", "images")
    measured = {
        task: {
            name: Side(torch.zeros(codes, dtype=torch.long))
            for name in sides(manifests[task].images_per_example)
        }
        for task in chosen
    }
    total = queries * sum(map(len, measured.values()))
    with Progress(total, "evaluate", "pictures") as bar:
        for task, seen in measured.items():
            rest = islice(read_examples(root, "test", task), queries)
            while examples := list(islice(rest, batch_size)):
                for number, side in enumerate(seen.values()):
                    pixels = to_tensor([example.images[number] for example in examples])
                    side.add(tokenizer, pixels, rfid)
                    bar.update(len(examples), task)
    return measured


def _joined(measured: dict[str, dict[str, Side]]) -> Side:
    """All sides of all tasks as one."""
    sides = [side for task in measured.values() for side in task.values()]
    joined = Side(torch.stack([side.counts for side in sides]).sum(0))
    for name, parts in joined.scores.items():
        parts += [part for side in sides for part in side.scores[name]]
    return joined


def _rows(report: dict[str, Any]) -> Iterator[list[Any]]:
    """One row a number, as COLUMNS has them; a plain number has no interval."""
    places = [("all", "all", report["all"])]
    places += [
        (task, side, numbers)
        for task, sides in report["tasks"].items()
        for side, numbers in sides.items()
    ]
    for task, side, numbers in places:
        for metric in SCORES:
            yield [task, side, metric, *(numbers[metric][key] for key in COLUMNS[3:])]
        for name, value in numbers["codes"].items():
            yield [task, side, f"codes_{name}", value, None, None, numbers["codes"]["num_tokens"]]
    if rfid := report["rfid"]:
        yield ["all", "all", "rfid", rfid["value"], None, None, rfid["pictures"]]


def _write(output: Path, report: dict[str, Any], measured: dict[str, dict[str, Side]]) -> None:
    """Pictures first, the numbers last: where metrics.json is new, all is."""
    use = plot_code_histogram(_joined(measured).counts)
    sheets = {
        task: image_grid(
            [list(row) for side in sides.values() for row in zip(*side.shown, strict=True)],
            row_titles=[text for side in sides for text in (side, "drawn")],
        )
        for task, sides in measured.items()
    }
    for name, picture in {"codes": use, **sheets}.items():
        with atomic_path(output / f"{name}.png") as part:
            picture.save(part)
    write_text(output / "report.html", page(report, sheets, use))
    with (
        atomic_path(output / "scores.csv") as part,
        part.open("w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file).writerows([COLUMNS, *_rows(report)])
    write_json(output / "metrics.json", report)
