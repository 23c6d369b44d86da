"""A look into shards: what they hold, as pictures and numbers, and what is silently wrong.

Token files fail without a sound: a collapsed tokenizer, ids of another tokenizer's codebook, one
picture again and again. So ids are decoded and looked at, and what is suspicious is flagged.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from delvm.data.codebook_usage import CodebookUsage
from delvm.data.datasets.sampler import seeded_rng
from delvm.data.image_io import to_pil
from delvm.data.shards.manifest import MANIFEST, Manifest, load_manifests
from delvm.data.shards.reader import read_examples, read_tokens
from delvm.errors import UserError
from delvm.evaluation.query_set import decode
from delvm.interop.fingerprint import fingerprint
from delvm.models.vqgan import VQGAN
from delvm.progress import Progress
from delvm.storage import StoragePath, atomic_path, write_json
from delvm.viz.code_histogram import plot_code_histogram
from delvm.viz.image_grid import image_grid

TOO_FREQUENT = 0.2  # one code's share of the tokens of a side
CONSTANT = 0.01  # share of pictures that are one code all over
REPEATED = 0.5  # share of pictures that are there already
_DARK = 0.1  # mean of a picture that counts as black ground


@dataclass
class Side:
    """What was seen of one side of a task's examples: all first pictures, or all second ones.

    Attributes:
        counts: how often each code occurred, (V,).
        constant: pictures of which all tokens are one code.
        distinct: hashes of the pictures' ids.
    """

    counts: Tensor
    constant: int = 0
    distinct: set[int] = field(default_factory=set)
    pictures: int = 0

    def add(self, ids: np.ndarray) -> None:
        """Count ids (n, N)."""
        flat = torch.from_numpy(ids.astype(np.int64)).flatten()
        self.counts += torch.bincount(flat, minlength=len(self.counts))
        self.constant += int((ids == ids[:, :1]).all(1).sum())
        self.distinct |= {hash(row.tobytes()) for row in ids}
        self.pictures += len(ids)


def sides(pictures: int) -> tuple[str, ...]:
    """What the k pictures of an example are called."""
    if pictures == 2:
        return ("input", "target")
    return tuple(f"picture {number}" for number in range(1, pictures + 1))


def inspect(
    root: StoragePath, tokenizer: VQGAN | None, *, output: Path, pictures: int = 8, seed: int = 0
) -> dict[str, Any]:
    """Look at every split and task of a root of shards.

    Args:
        root: of image shards or of token shards.
        tokenizer: draws the ids of token shards; not needed for image shards.
        output: folder for inspect.json, and a SPLIT_TASK.png a task with ``pictures`` examples
            drawn at random; of token shards also a SPLIT_TASK_codes.png.
        seed: of the choice.

    Returns:
        What inspect.json holds: root, kind, flags (a sentence each), and splits: split -> task ->
        count, shards, rejected and, of token shards, the use of the codes by side.

    Raises:
        UserError: there are no shards, or no tokenizer where one is needed.
    """
    kind, found = kind_of(root), _folders(root)
    if kind == "tokens" and tokenizer is None:
        raise UserError(f"{root} holds tokens, which a tokenizer draws: set tokenizer=PATH")
    flags = _faults(root, kind, sorted({split for split, _ in found}))
    splits: dict[str, dict[str, Any]] = {}
    with Progress(len(found), "inspect", "folders") as bar:
        for split, task in found:
            place = f"{split}/{task}"
            try:
                manifest = Manifest.load(root / split / task / MANIFEST)
                if tokenizer is None or kind == "images":
                    facts = _look_at_pairs(root, manifest, output, pictures, seed)
                else:
                    facts, wrong = _look_at_tokens(
                        root, manifest, tokenizer, output, pictures, seed
                    )
                    flags += [f"{place}: {each}" for each in wrong]
                splits.setdefault(split, {})[task] = facts
            except UserError as error:
                flags.append(f"{place}: {error}")
            bar.update(note=place)
    report = {"root": str(root), "kind": kind, "flags": flags, "splits": splits}
    write_json(output / "inspect.json", report)
    return report


def _faults(root: StoragePath, kind: str, splits: list[str]) -> list[str]:
    """What training would refuse of a split as a whole."""
    faults = []
    for split in splits:
        try:
            load_manifests(root, split, kind)
        except UserError as error:
            faults.append(f"{split}: {error}")
    return faults


def kind_of(root: StoragePath) -> str:
    """Whether a root holds "images" or "tokens", by the first manifest that can be read.

    Raises:
        UserError: there are no shards.
    """
    for split, task in _folders(root):
        try:
            return Manifest.load(root / split / task / MANIFEST).kind
        except UserError:  # told when its turn comes
            continue
    raise UserError(
        f"no shards in {root}: set input=FOLDER to what `delvm prepare` or `delvm encode` wrote"
    )


def _folders(root: StoragePath) -> list[tuple[str, str]]:
    """Each (split, task) that a root has a finished folder for."""
    names = sorted(each.name for each in root.iterdir() if each.is_dir())
    return [
        (split, task)
        for split in names
        for task in sorted(each.name for each in (root / split).iterdir())
        if (root / split / task / MANIFEST).exists()
    ]


def _chosen(manifest: Manifest, pictures: int, seed: int) -> list[int]:
    """Numbers of the examples to be shown, in order."""
    rng = seeded_rng(seed, manifest.split, manifest.task)
    count = min(pictures, manifest.count)
    return sorted(int(n) for n in rng.choice(manifest.count, count, replace=False))


def _look_at_pairs(
    root: StoragePath, manifest: Manifest, output: Path, pictures: int, seed: int
) -> dict[str, Any]:
    split, task = manifest.split, manifest.task
    chosen = set(_chosen(manifest, pictures, seed))
    names = sides(manifest.images_per_example)
    rows: list[list[Image.Image]] = [[] for _ in names]
    for number, example in enumerate(read_examples(root, split, task, manifest=manifest)):
        if number in chosen:
            for row, picture in zip(rows, example.images, strict=True):
                row.append(Image.fromarray(picture))
    _save(image_grid(rows, row_titles=list(names)), output / f"{split}_{task}.png")
    return _counts(manifest)


def _counts(manifest: Manifest) -> dict[str, Any]:
    return {
        "count": manifest.count,
        "shards": len(manifest.shards),
        "rejected": manifest.rejected,
    }


def _look_at_tokens(
    root: StoragePath, manifest: Manifest, tokenizer: VQGAN, output: Path, pictures: int, seed: int
) -> tuple[dict[str, Any], list[str]]:
    """Facts on a folder of token shards, and what is suspicious about it."""
    c, split, task = tokenizer.config, manifest.split, manifest.task
    assert manifest.vocab_size is not None
    flags = []
    if manifest.fingerprint != (mine := fingerprint(tokenizer)):
        flags.append(
            f"encoded by tokenizer {manifest.fingerprint}, drawn here by {mine}: set tokenizer=PATH"
        )
    fits = (c.num_embeddings, c.tokens_per_image) == (
        manifest.vocab_size,
        manifest.tokens_per_image,
    )
    seen = {
        name: Side(torch.zeros(manifest.vocab_size, dtype=torch.long))
        for name in sides(manifest.images_per_example)
    }
    shown: list[np.ndarray] = []
    for ids in _records(root, manifest, set(_chosen(manifest, pictures, seed)), shown):
        for number, side in enumerate(seen.values()):
            side.add(ids[:, number])
    if fits:
        drawn = torch.from_numpy(np.stack(shown).astype(np.int64))  # (n, k, N)
        rows = [to_pil(decode(tokenizer, drawn[:, number])) for number in range(len(seen))]
        _save(image_grid(rows, row_titles=list(seen)), output / f"{split}_{task}.png")
    all_counts = torch.stack([side.counts for side in seen.values()]).sum(0)
    _save(plot_code_histogram(all_counts), output / f"{split}_{task}_codes.png")
    for name, side in seen.items():
        flags += [f"{name}s: {each}" for each in suspicious(side, manifest, tokenizer, fits)]
    assert manifest.tokens_per_image is not None
    area = manifest.image_size**2 / manifest.tokens_per_image
    uses = {name: CodebookUsage.of(side.counts).as_dict(area) for name, side in seen.items()}
    return {**_counts(manifest), **uses}, flags


def _records(
    root: StoragePath, manifest: Manifest, wanted: set[int], shown: list[np.ndarray]
) -> Iterator[np.ndarray]:
    """The records (n, k, N) of a folder; those examples that are ``wanted`` go to ``shown``."""
    first = 0
    for record in read_tokens(root, manifest.split, manifest.task, manifest):
        shown += [record[n - first] for n in sorted(wanted) if first <= n < first + len(record)]
        first += len(record)
        yield record


def suspicious(side: Side, manifest: Manifest, tokenizer: VQGAN, fits: bool) -> list[str]:
    """What a side's tokens should not look like, a sentence each.

    A code that draws black may be as frequent as it likes: targets are drawn on black.

    Args:
        side: what was counted.
        manifest: of its folder.
        tokenizer: draws the most frequent code, if the ids ``fits`` it.
    """
    found, use = [], CodebookUsage.of(side.counts)
    if use.most_frequent_fraction > TOO_FREQUENT and not (
        fits and _is_black(tokenizer, use.most_frequent)
    ):
        found.append(f"code {use.most_frequent} is {use.most_frequent_fraction:.0%} of the tokens")
    if (share := side.constant / side.pictures) > CONSTANT:
        found.append(f"{share:.0%} of the pictures are one code all over")
    again = 1 - len(side.distinct) / side.pictures
    if (manifest.balance or {}).get("mode") != "oversample" and again > REPEATED:
        found.append(f"only {len(side.distinct):,} of {side.pictures:,} pictures are distinct")
    return found


def _is_black(tokenizer: VQGAN, code: int) -> bool:
    """Whether a picture of that code alone is black."""
    ids = torch.full((1, tokenizer.config.tokens_per_image), code)
    return float(decode(tokenizer, ids).mean()) < _DARK


def _save(picture: Image.Image, path: Path) -> None:
    with atomic_path(path) as part:
        picture.save(part)
