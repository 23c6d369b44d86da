"""`delvm convert`: token files of other projects to token shards, back, and into each other."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from delvm.commands.schema import ConvertConfig, Format
from delvm.data.shards.manifest import (
    MANIFEST,
    load_manifests,
    plan_images,
    plan_tokens,
    write_codebook,
)
from delvm.data.shards.reader import read_tokens
from delvm.data.shards.writer import write_tokens
from delvm.data.types import SPLITS
from delvm.errors import UserError
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_tokenizer
from delvm.interop.token_files import read_internlm, read_lvm, write_internlm, write_lvm
from delvm.models.token_space import TokenSpace
from delvm.progress import Progress, track

SUFFIX = {Format.internlm_bin: ".bin", Format.lvm_jsonl: ".jsonl"}
READ = {Format.internlm_bin: read_internlm, Format.lvm_jsonl: read_lvm}
WRITE = {Format.internlm_bin: write_internlm, Format.lvm_jsonl: write_lvm}


@dataclass(frozen=True)
class Samples:
    """Token ids of one split and task.

    Attributes:
        split, task: None where the path does not tell.
        count: samples.
        read: gives them from the first one on, ids (T,) int64 each.
        origin: where they are from.
    """

    split: str | None
    task: str | None
    count: int
    read: Callable[[], Iterator[np.ndarray]]
    origin: Path


def run(cfg: ConvertConfig) -> None:
    """Convert, and say what was written."""
    source, output = Path(cfg.input), Path(cfg.output)
    space = TokenSpace(cfg.codes, cfg.bos, cfg.eos)
    kind = recognise(source)
    found = list(from_shards(source) if kind is Format.shards else from_files(source, kind, space))
    if cfg.to is Format.shards:
        if kind is Format.shards:
            raise UserError(
                f"input={source} holds shards already: set to=internlm_bin or lvm_jsonl"
            )
        for samples in found:
            to_shards(samples, output, cfg, kind)
        return
    paths = [output / (each.task or "") / f"{each.split or each.origin.stem}" for each in found]
    paths = [path.with_name(path.name + SUFFIX[cfg.to]) for path in paths]
    for path in paths:
        if path.exists() and not cfg.overwrite:
            raise UserError(f"{path} is there already: set overwrite=true to replace it")
    for samples, path in zip(found, paths, strict=True):
        shown = track(samples.read(), samples.count, "convert", "samples")
        WRITE[cfg.to](path, shown, space)
        print(f"{samples.origin}: {samples.count:,} samples to {path}")


def recognise(path: Path) -> Format:
    """What kind of token files a path holds.

    Raises:
        UserError: it is not there, or holds none, or several kinds.
    """
    if not path.exists():
        raise UserError(f"input={path} not found: set input=PATH")
    kinds = {kind for kind, suffix in SUFFIX.items() if _files(path, suffix)}
    if path.is_dir() and any(path.glob(f"*/*/{MANIFEST}")):
        kinds.add(Format.shards)
    if len(kinds) != 1:
        held = " and ".join(sorted(kind.value for kind in kinds)) or "no token files"
        raise UserError(f"input={path} holds {held}: set input to token shards, a .bin or a .jsonl")
    return kinds.pop()


def _files(path: Path, suffix: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == suffix else []
    return sorted(path.rglob(f"*{suffix}"))


def from_shards(root: Path) -> Iterator[Samples]:
    """A sample is an example, all its pictures in a row."""
    for split in SPLITS:
        if not (root / split).is_dir():
            continue
        for task, manifest in load_manifests(root, split, "tokens").items():

            def read(split: str = split, task: str = task) -> Iterator[np.ndarray]:
                for record in read_tokens(root, split, task):
                    yield from record.reshape(len(record), -1).astype(np.int64)

            yield Samples(split, task, manifest.count, read, root / split / task)


def from_files(path: Path, kind: Format, space: TokenSpace) -> Iterator[Samples]:
    """A sample is a line; TASK/SPLIT.bin tells its task and split."""
    for file in _files(path, SUFFIX[kind]):
        with file.open("rb") as lines:
            count = sum(1 for _ in lines)
        if not count:
            raise UserError(f"{file} holds no lines: set input to another file")
        split = file.stem if file.stem in SPLITS else None
        task = file.resolve().parent.name if split else None

        def read(file: Path = file) -> Iterator[np.ndarray]:
            return READ[kind](file, space)

        yield Samples(split, task, count, read, file)


def to_shards(samples: Samples, output: Path, cfg: ConvertConfig, kind: Format) -> None:
    """Write the lines of one file as token shards of the tokenizer that made them.

    Raises:
        UserError: the task or split is not known, or a line is no whole number of pictures.
    """
    split, task = cfg.split or samples.split, cfg.task or samples.task
    for name, value in (("split", split), ("task", task)):
        if value is None:
            raise UserError(f"{samples.origin} does not tell its {name}: set {name}=NAME")
    assert split is not None and task is not None
    tokenizer = load_tokenizer(cfg.tokenizer)
    tokens, mark = tokenizer.config.tokens_per_image, fingerprint(tokenizer)
    if tokenizer.config.num_embeddings != cfg.codes:
        raise UserError(
            f"codes={cfg.codes} != num_embeddings {tokenizer.config.num_embeddings} "
            f"(tokenizer={cfg.tokenizer}): set codes={tokenizer.config.num_embeddings}, or the "
            "tokenizer that made the file"
        )
    length = len(next(samples.read()))
    if not length or length % tokens:
        raise UserError(
            f"{samples.origin}: lines of {length} tokens are no whole number of pictures of "
            f"{tokens} tokens (tokenizer={cfg.tokenizer}): set tokenizer=PATH to theirs"
        )
    size = tokenizer.config.resolution
    made = plan_images(split, task, source=kind.value, seed=0, image_size=size)
    made = replace(
        made, images_per_example=length // tokens, settings={"file": samples.origin.name}
    )
    plan = plan_tokens(
        made,
        samples.count,
        tokens_per_image=tokens,
        vocab_size=len(tokenizer.codebook),
        fingerprint=mark,
    )
    write_codebook(output, tokenizer.codebook, mark, cfg.overwrite)
    with Progress(samples.count, "convert", "samples") as bar:
        lines = _Shaped(samples, (length // tokens, tokens), bar)
        write_tokens(output, plan, lines.between, cfg.overwrite)
    print(f"{samples.origin}: {samples.count:,} samples to {output}/{split}/{task}")


class _Shaped:
    """The lines of a file as examples, read once as long as they are asked for in order."""

    def __init__(self, samples: Samples, shape: tuple[int, int], bar: Progress) -> None:
        self.samples, self.shape, self.bar = samples, shape, bar
        self.place, self.lines = 0, enumerate(samples.read(), 1)

    def between(self, start: int, stop: int) -> Iterable[np.ndarray]:
        """Examples (1, k, N) from start to stop."""
        self.bar.skip(start - self.place)
        for number, ids in islice(self.lines, start - self.place, stop - self.place):
            if len(ids) != self.shape[0] * self.shape[1]:
                raise UserError(
                    f"{self.samples.origin} line {number} holds {len(ids)} tokens, line 1 "
                    f"{self.shape[0] * self.shape[1]}"
                )
            self.bar.update()
            yield ids.reshape(1, *self.shape)
        self.place = stop
