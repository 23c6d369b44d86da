"""`delvm convert`: token files of other projects to token shards, back, and into each other."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import hydra
import numpy as np
import numpy.typing as npt
from omegaconf import DictConfig

from delvm.commands.app import run_job
from delvm.configs.store import config_root
from delvm.configs.verbs import ConvertConfig, TokenFormat
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

SUFFIX = {TokenFormat.internlm_bin: ".bin", TokenFormat.lvm_jsonl: ".jsonl"}
READ = {TokenFormat.internlm_bin: read_internlm, TokenFormat.lvm_jsonl: read_lvm}
WRITE = {TokenFormat.internlm_bin: write_internlm, TokenFormat.lvm_jsonl: write_lvm}
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenFile:
    """The samples of one split and task.

    Attributes:
        split, task: None where the path does not name them.
        count: samples.
        read: yields the ids (T,) of each sample, from the first one on.
        path: of the file or of the shards.
    """

    split: str | None
    task: str | None
    count: int
    read: Callable[[], Iterator[Ids]]
    path: Path


@hydra.main(version_base="1.3", config_path=str(config_root("convert")), config_name="convert")
def main(cfg: DictConfig) -> float | None:
    """Convert as the config says."""
    return run_job("convert", run, cfg)


def run(cfg: ConvertConfig) -> None:
    """Convert, and print what was written."""
    source, output = Path(cfg.input), Path(cfg.output_dir)
    space = TokenSpace(cfg.codebook_size, cfg.bos, cfg.eos)
    kind = detect_format(source)
    is_shards = kind is TokenFormat.shards
    files = list(from_shards(source) if is_shards else from_files(source, kind, space))
    if cfg.output_format is TokenFormat.shards:
        if is_shards:
            raise UserError(
                f"input={source} holds shards already: set output_format=internlm_bin or lvm_jsonl"
            )
        for file in files:
            to_shards(file, output, cfg, kind)
        return
    suffix = SUFFIX[cfg.output_format]
    paths = [
        output / (each.task or "") / f"{each.split or each.path.stem}{suffix}" for each in files
    ]
    for path in paths:
        if path.exists() and not cfg.overwrite:
            raise UserError(f"{path} exists: set overwrite=true to replace it")
    for file, path in zip(files, paths, strict=True):
        samples = track(file.read(), file.count, "convert", "samples")
        WRITE[cfg.output_format](path, samples, space)
        print(f"{file.path}: {file.count:,} samples to {path}")


def detect_format(path: Path) -> TokenFormat:
    """The format of the token files that a path holds.

    Raises:
        UserError: it does not exist, or holds none, or several formats.
    """
    if not path.exists():
        raise UserError(f"input={path} not found: set input=PATH")
    formats = {each for each, suffix in SUFFIX.items() if _files(path, suffix)}
    if path.is_dir() and any(path.glob(f"*/*/{MANIFEST}")):
        formats.add(TokenFormat.shards)
    if len(formats) != 1:
        names = " and ".join(sorted(each.value for each in formats)) or "no token files"
        raise UserError(
            f"input={path} holds {names}: set input to token shards, a .bin or a .jsonl"
        )
    return formats.pop()


def _files(path: Path, suffix: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == suffix else []
    return sorted(path.rglob(f"*{suffix}"))


def from_shards(root: Path) -> Iterator[TokenFile]:
    """A sample is an example, all its images in a row."""
    for split in SPLITS:
        if not (root / split).is_dir():
            continue
        for task, manifest in load_manifests(root, split, "tokens").items():

            def read(split: str = split, task: str = task) -> Iterator[Ids]:
                for record in read_tokens(root, split, task):
                    yield from record.reshape(len(record), -1).astype(np.int64)

            yield TokenFile(split, task, manifest.count, read, root / split / task)


def from_files(path: Path, kind: TokenFormat, space: TokenSpace) -> Iterator[TokenFile]:
    """A sample is a line; the path TASK/SPLIT.bin names its task and split."""
    for file in _files(path, SUFFIX[kind]):
        with file.open("rb") as lines:
            count = sum(1 for _ in lines)
        if not count:
            raise UserError(f"{file} holds no lines: set input to another file")
        split = file.stem if file.stem in SPLITS else None
        task = file.resolve().parent.name if split else None

        def read(file: Path = file) -> Iterator[Ids]:
            return READ[kind](file, space)

        yield TokenFile(split, task, count, read, file)


def to_shards(file: TokenFile, output: Path, cfg: ConvertConfig, kind: TokenFormat) -> None:
    """Write the lines of one file as token shards of the tokenizer that made them.

    Raises:
        UserError: task or split are unknown, or the lines do not fit the tokenizer.
    """
    split, task = cfg.split or file.split, cfg.task or file.task
    if split is None or task is None:
        name = "split" if split is None else "task"
        raise UserError(f"{file.path} does not name its {name}: set {name}=NAME")
    tokenizer = load_tokenizer(cfg.tokenizer)
    tokens, codes = tokenizer.config.tokens_per_image, tokenizer.config.num_embeddings
    if codes != cfg.codebook_size:
        raise UserError(
            f"codebook_size={cfg.codebook_size} != num_embeddings {codes} "
            f"(tokenizer={cfg.tokenizer}): set codebook_size={codes}, or the tokenizer that made "
            "the file"
        )
    length = len(next(file.read()))
    if not length or length % tokens:
        raise UserError(
            f"{file.path}: lines of {length} tokens are not a multiple of the {tokens} tokens per "
            f"image (tokenizer={cfg.tokenizer}): set tokenizer=PATH to the one that made them"
        )
    images = plan_images(
        split, task, source=kind.value, seed=0, image_size=tokenizer.config.resolution
    )
    images = replace(images, images_per_example=length // tokens, settings={"file": file.path.name})
    mark = fingerprint(tokenizer)
    plan = plan_tokens(
        images,
        file.count,
        tokens_per_image=tokens,
        vocab_size=len(tokenizer.codebook),
        fingerprint=mark,
    )
    write_codebook(output, tokenizer.codebook, mark, cfg.overwrite)
    with Progress(file.count, "convert", "samples") as bar:
        lines = _ReshapedLines(file, (length // tokens, tokens), bar)
        write_tokens(output, plan, lines.slice, cfg.overwrite)
    print(f"{file.path}: {file.count:,} samples to {output}/{split}/{task}")


class _ReshapedLines:
    """The lines of a file as examples, read once as long as they are asked for in order."""

    def __init__(self, file: TokenFile, shape: tuple[int, int], bar: Progress) -> None:
        self.file, self.shape, self.bar = file, shape, bar
        self.position, self.lines = 0, enumerate(file.read(), 1)

    def slice(self, start: int, stop: int) -> Iterable[Ids]:
        """Examples (1, k, N) from start to stop."""
        self.bar.skip(start - self.position)
        length = self.shape[0] * self.shape[1]
        for number, ids in islice(self.lines, start - self.position, stop - self.position):
            if len(ids) != length:
                raise UserError(
                    f"{self.file.path} line {number} holds {len(ids)} tokens, line 1 {length}"
                )
            self.bar.update()
            yield ids.reshape(1, *self.shape)
        self.position = stop
