"""Inspect shards: show what they hold, and flag anomalies.

Corrupt token files fail silently: a collapsed tokenizer, ids of another tokenizer's codebook, the
same image repeated. So token ids are decoded to look at, and anomalies in their statistics are
flagged.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from delvm.data.codebook_usage import CodebookUsage
from delvm.data.datasets.sampler import seeded_rng
from delvm.data.image_io import to_pil
from delvm.data.shards.manifest import Manifest, load_manifests
from delvm.data.shards.reader import read_examples, read_tokens
from delvm.data.shards.replacement import MANIFEST
from delvm.errors import UserError
from delvm.evaluation.queries.query_set import decode
from delvm.interop.fingerprint import fingerprint
from delvm.models.protocols import TokenizerNet
from delvm.progress import Progress
from delvm.storage import StoragePath, atomic_path, write_json
from delvm.viz.code_histogram import plot_code_histogram
from delvm.viz.image_grid import image_grid

MAX_CODE_FRACTION = 0.2  # of a side's tokens that are the same code
MAX_CONSTANT_FRACTION = 0.01  # of a side's images that consist of one code
MAX_DUPLICATE_FRACTION = 0.5  # of a side's images that repeat an earlier one
_MAX_BLACK = 0.1  # mean pixel value of an image that counts as black

Ids = npt.NDArray[Any]


@dataclass
class TokenStats:
    """Token statistics of one side: of all inputs of a task, or of all targets.

    Attributes:
        counts: How often each code occurred, (V,).
        constant: Number of images whose tokens are all the same code.
        hashes: Of the ids of each distinct image.
        num_images: Number of images.
    """

    counts: Tensor
    constant: int = 0
    hashes: set[int] = field(default_factory=set)
    num_images: int = 0

    def update(self, ids: Ids) -> None:
        """Add images, ids (n, N)."""
        flat = torch.from_numpy(ids.astype(np.int64)).flatten()
        self.counts += torch.bincount(flat, minlength=len(self.counts))
        self.constant += int((ids == ids[:, :1]).all(1).sum())
        self.hashes |= {hash(row.tobytes()) for row in ids}
        self.num_images += len(ids)


def side_names(manifest: Manifest) -> tuple[str, ...]:
    """Names of the images of an example; of an image with annotations, those of the annotations."""
    count = manifest.images_per_example
    if count == 2:
        return ("input", "target")
    annotations = manifest.settings.get("annotations")
    if manifest.settings.get("order") == "fixed" and isinstance(annotations, list):
        names = ("image", *map(str, annotations))
        if len(set(names)) == count:
            return names
    return tuple(f"image {number}" for number in range(1, count + 1))


def inspect_shards(
    root: StoragePath,
    tokenizer: TokenizerNet | None,
    *,
    output_dir: Path,
    num_images: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Inspect every split and task of a root of shards.

    Args:
        root: Of image shards or of token shards.
        tokenizer: Decodes token shards; not needed for image shards.
        output_dir: For inspect.json, and per task SPLIT_TASK.png with ``num_images`` random
            examples and, for token shards, SPLIT_TASK_codes.png with a histogram of the codes.
        num_images: Examples shown per task.
        seed: Of the random examples.

    Returns:
        The content of inspect.json: root, kind, flags (one sentence each), and splits: split ->
        task -> count, shards, rejected and, for token shards, the codebook usage of each side.

    Raises:
        UserError: There are no shards, or no tokenizer for token shards.
    """
    kind, task_dirs = shard_kind(root), _task_dirs(root)
    if kind == "tokens" and tokenizer is None:
        raise UserError(f"{root} holds tokens, which need a tokenizer: set tokenizer=PATH")
    flags = _split_errors(root, kind, sorted({split for split, _ in task_dirs}))
    splits: dict[str, dict[str, Any]] = {}
    with Progress(len(task_dirs), "inspect", "folders") as bar:
        for split, task in task_dirs:
            name = f"{split}/{task}"
            try:
                manifest = Manifest.load(root / split / task / MANIFEST)
                chosen = _sample_examples(manifest, num_images, seed)
                if tokenizer is None or kind == "images":
                    facts = _inspect_images(root, manifest, output_dir, chosen)
                else:
                    facts, found = _inspect_tokens(root, manifest, tokenizer, output_dir, chosen)
                    flags += [f"{name}: {each}" for each in found]
                splits.setdefault(split, {})[task] = facts
            except UserError as error:
                flags.append(f"{name}: {error}")
            bar.update(note=name)
    report = {"root": str(root), "kind": kind, "flags": flags, "splits": splits}
    write_json(output_dir / "inspect.json", report)
    return report


def format_inspection(report: dict[str, Any]) -> list[str]:
    """The counts of a report, and the codebook usage of token shards, as lines."""
    lines = []
    for split, tasks in report["splits"].items():
        for task, facts in tasks.items():
            left = f", {facts['rejected']:,} rejected" if facts["rejected"] else ""
            lines.append(
                f"{split}/{task}: {facts['count']:,} examples in {facts['shards']:,} shards{left}"
            )
            lines += [
                f"  {side}s: {usage['num_used']:,} of {usage['codebook_size']:,} codes, perplexity "
                f"{usage['perplexity']:,.0f}, {usage['entropy_bits']:.2f} bits per token; code "
                f"{usage['most_frequent']} is {usage['most_frequent_fraction']:.1%}"
                for side, usage in facts.items()
                if isinstance(usage, dict)
            ]
    return lines


def _split_errors(root: StoragePath, kind: str, splits: list[str]) -> list[str]:
    """What makes training refuse an entire split."""
    errors = []
    for split in splits:
        try:
            load_manifests(root, split, kind)
        except UserError as error:
            errors.append(f"{split}: {error}")
    return errors


def shard_kind(root: StoragePath) -> str:
    """Whether a root holds "images" or "tokens", by the first manifest that can be read.

    Raises:
        UserError: There are no shards.
    """
    for split, task in _task_dirs(root):
        try:
            return Manifest.load(root / split / task / MANIFEST).kind
        except UserError:  # reported by `inspect_shards` for its task
            continue
    raise UserError(
        f"no shards in {root}: set input_dir=FOLDER to what `delvm prepare` or `delvm encode` wrote"
    )


def _task_dirs(root: StoragePath) -> list[tuple[str, str]]:
    """Each (split, task) whose folder is complete."""
    names = sorted(each.name for each in root.iterdir() if each.is_dir())
    return [
        (split, task)
        for split in names
        for task in sorted(each.name for each in (root / split).iterdir())
        if (root / split / task / MANIFEST).exists()
    ]


def _sample_examples(manifest: Manifest, count: int, seed: int) -> set[int]:
    """Indices of the examples to show."""
    rng = seeded_rng(seed, manifest.split, manifest.task)
    indices = rng.choice(manifest.count, min(count, manifest.count), replace=False)
    return {int(index) for index in indices}


def _inspect_images(
    root: StoragePath, manifest: Manifest, output_dir: Path, chosen: set[int]
) -> dict[str, Any]:
    split, task = manifest.split, manifest.task
    names = side_names(manifest)
    rows: list[list[Image.Image]] = [[] for _ in names]
    for index, example in enumerate(read_examples(root, split, task, manifest=manifest)):
        if index in chosen:
            for row, image in zip(rows, example.images, strict=True):
                row.append(Image.fromarray(image))
    _save(image_grid(rows, row_titles=list(names)), output_dir / f"{split}_{task}.png")
    return _counts(manifest)


def _counts(manifest: Manifest) -> dict[str, Any]:
    return {
        "count": manifest.count,
        "shards": len(manifest.shards),
        "rejected": manifest.rejected,
    }


def _inspect_tokens(
    root: StoragePath,
    manifest: Manifest,
    tokenizer: TokenizerNet,
    output_dir: Path,
    chosen: set[int],
) -> tuple[dict[str, Any], list[str]]:
    """Facts about a folder of token shards, and its anomalies."""
    stem = f"{manifest.split}_{manifest.task}"
    assert manifest.vocab_size is not None and manifest.tokens_per_image is not None
    flags = []
    if manifest.fingerprint != (given := fingerprint(tokenizer)):
        flags.append(
            f"encoded by tokenizer {manifest.fingerprint}, decoded here by {given}: "
            "set tokenizer=PATH"
        )
    decodable = (tokenizer.codebook_size, tokenizer.tokens_per_image) == (
        manifest.vocab_size,
        manifest.tokens_per_image,
    )
    sides = {
        name: TokenStats(torch.zeros(manifest.vocab_size, dtype=torch.long))
        for name in side_names(manifest)
    }
    shown: list[Ids] = []
    for ids in _records(root, manifest, chosen, shown):
        for index, side in enumerate(sides.values()):
            side.update(ids[:, index])
    if decodable:
        sample = torch.from_numpy(np.stack(shown).astype(np.int64))  # (n, k, N)
        rows = [to_pil(decode(tokenizer, sample[:, index])) for index in range(len(sides))]
        _save(image_grid(rows, row_titles=list(sides)), output_dir / f"{stem}.png")
    counts = torch.stack([side.counts for side in sides.values()]).sum(0)
    _save(plot_code_histogram(counts), output_dir / f"{stem}_codes.png")
    for name, side in sides.items():
        anomalies = find_anomalies(side, manifest, tokenizer if decodable else None)
        flags += [f"{name}s: {each}" for each in anomalies]
    pixels_per_token = manifest.image_size**2 / manifest.tokens_per_image
    usage = {
        name: CodebookUsage.of(side.counts).as_dict(pixels_per_token)
        for name, side in sides.items()
    }
    return {**_counts(manifest), **usage}, flags


def _records(
    root: StoragePath, manifest: Manifest, chosen: set[int], shown: list[Ids]
) -> Iterator[Ids]:
    """Yield the records (n, k, N) of a folder, and append the chosen examples to ``shown``."""
    first = 0
    for record in read_tokens(root, manifest.split, manifest.task, manifest):
        shown += [record[i - first] for i in sorted(chosen) if first <= i < first + len(record)]
        first += len(record)
        yield record


def find_anomalies(
    side: TokenStats, manifest: Manifest, tokenizer: TokenizerNet | None
) -> list[str]:
    """Anomalies in the token statistics of a side, one sentence each.

    A code that decodes to black may be as frequent as it likes: targets have a black background.

    Args:
        manifest: Of the folder.
        tokenizer: Decodes the most frequent code; None if the ids do not fit it.
    """
    anomalies, usage = [], CodebookUsage.of(side.counts)
    if usage.most_frequent_fraction > MAX_CODE_FRACTION and not (
        tokenizer is not None and _is_black(tokenizer, usage.most_frequent)
    ):
        anomalies.append(
            f"code {usage.most_frequent} is {usage.most_frequent_fraction:.0%} of the tokens"
        )
    if (constant := side.constant / side.num_images) > MAX_CONSTANT_FRACTION:
        anomalies.append(f"{constant:.0%} of the images consist of a single code")
    distinct = len(side.hashes)
    oversampled = (manifest.balance or {}).get("mode") == "oversample"
    if not oversampled and 1 - distinct / side.num_images > MAX_DUPLICATE_FRACTION:
        anomalies.append(f"only {distinct:,} of {side.num_images:,} images are distinct")
    return anomalies


def _is_black(tokenizer: TokenizerNet, code: int) -> bool:
    """Whether an image that consists of this code is black."""
    ids = torch.full((1, tokenizer.tokens_per_image), code)
    return float(decode(tokenizer, ids).mean()) < _MAX_BLACK


def _save(image: Image.Image, path: Path) -> None:
    with atomic_path(path) as tmp:
        image.save(tmp)
