"""Token shards from and to the token files of other projects, whose formats are given as functions.

A sample is the ids of all images of an example in a row, a line of such a file.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from delvm.data.shards.codebook import write_codebook
from delvm.data.shards.manifest import load_manifests, plan_images, plan_tokens
from delvm.data.shards.reader import read_tokens
from delvm.data.shards.replacement import MANIFEST
from delvm.data.shards.writer import write_tokens
from delvm.data.types import SPLITS
from delvm.errors import UserError
from delvm.progress import Progress

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


@dataclass(frozen=True)
class TokenSource:
    """What the shards record of the tokenizer that made the ids.

    Attributes:
        name: of the tokenizer, for errors.
        codebook: (V, d).
    """

    name: str
    image_size: int
    tokens_per_image: int
    codebook: Tensor
    fingerprint: str


def detect_format(path: Path, suffixes: dict[str, str]) -> str:
    """Which format the token files below a path have: "shards", or a key of suffixes.

    Raises:
        UserError: the path does not exist, or holds none, or several formats.
    """
    if not path.exists():
        raise UserError(f"input={path} not found: set input=PATH")
    formats = {each for each, suffix in suffixes.items() if _files(path, suffix)}
    if path.is_dir() and any(path.glob(f"*/*/{MANIFEST}")):
        formats.add("shards")
    if len(formats) != 1:
        names = " and ".join(sorted(formats)) or "no token files"
        endings = " or a ".join(suffixes.values())
        raise UserError(f"input={path} holds {names}: set input to token shards, a {endings}")
    return formats.pop()


def _files(path: Path, suffix: str) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix == suffix else []
    # Hidden ones are left by a job that was killed.
    return sorted(each for each in path.rglob(f"*{suffix}") if not each.name.startswith("."))


def list_shards(root: Path) -> Iterator[TokenFile]:
    """The samples of each split and task of a root of token shards."""
    for split in SPLITS:
        if not (root / split).is_dir():
            continue
        for task, manifest in load_manifests(root, split, "tokens").items():

            def read(split: str = split, task: str = task) -> Iterator[Ids]:
                for record in read_tokens(root, split, task):
                    yield from record.reshape(len(record), -1).astype(np.int64)

            yield TokenFile(split, task, manifest.count, read, root / split / task)


def list_files(
    path: Path, suffix: str, read: Callable[[Path], Iterator[Ids]]
) -> Iterator[TokenFile]:
    """The samples of each file; the path TASK/SPLIT.bin names its task and split."""
    for file in _files(path, suffix):
        with file.open("rb") as lines:
            count = sum(1 for _ in lines)
        if not count:
            raise UserError(f"{file} holds no lines: set input to another file")
        split = file.stem if file.stem in SPLITS else None
        task = file.resolve().parent.name if split else None
        yield TokenFile(split, task, count, partial(read, file), file)


def require_name(file: TokenFile) -> tuple[str, str]:
    """The split and task of a file.

    Raises:
        UserError: one is unknown.
    """
    if file.split is None or file.task is None:
        name = "split" if file.split is None else "task"
        raise UserError(f"{file.path} does not name its {name}: set {name}=NAME")
    return file.split, file.task


def version(path: Path) -> tuple[int, int]:
    """(size in bytes, time of the last change in ns) of a file, or of a directory's manifest."""
    stat = (path / MANIFEST if path.is_dir() else path).stat()
    return stat.st_size, stat.st_mtime_ns


def write_shards(
    file: TokenFile, output: Path, tokenizer: TokenSource, kind: str, overwrite: bool
) -> None:
    """Write the lines of one file as token shards of the tokenizer that made them.

    Those that replace others are not put in place: `put_in_place` has to follow.

    Args:
        kind: the format of the file, for the manifest.

    Raises:
        UserError: task or split are unknown, or the lines do not fit the tokenizer.
    """
    split, task = require_name(file)
    tokens, length = tokenizer.tokens_per_image, len(next(file.read()))
    if not length or length % tokens:
        raise UserError(
            f"{file.path}: lines of {length} tokens are not a multiple of the {tokens} tokens per "
            f"image (tokenizer={tokenizer.name}): set tokenizer=PATH to the one that made them"
        )
    images = plan_images(split, task, source=kind, seed=0, image_size=tokenizer.image_size)
    images = replace(images, images_per_example=length // tokens, settings={"file": file.path.name})
    plan = plan_tokens(
        images,
        file.count,
        tokens_per_image=tokens,
        vocab_size=len(tokenizer.codebook),
        fingerprint=tokenizer.fingerprint,
    )
    write_codebook(output, tokenizer.codebook, tokenizer.fingerprint, overwrite, in_place=False)
    with Progress(file.count, "convert", "samples") as bar:
        lines = _ReshapedLines(file, (length // tokens, tokens), bar)
        write_tokens(output, plan, lines.slice, overwrite, in_place=False)


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
