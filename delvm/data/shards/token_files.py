"""Token shards from and to the token files of other projects, whose formats are given as functions.

A sample is the ids of all images of an example in a row, usually a line of such a file.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from delvm.progress import Progress, log

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenFile:
    """The samples of one split and task.

    Attributes:
        split, task: None where the path does not name them.
        count: samples, or lines where these were not counted.
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
            count = sum(1 for line in lines if line.strip())
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


def split_by_length(
    files: list[TokenFile], tokenizer: TokenSource, tasks: Mapping[int, str]
) -> list[TokenFile]:
    """The samples of each file, those of each number of images as a task of their own.

    The most frequent number of images of a task keeps its name, others are TASK_NUMBER.

    Args:
        files: with a split and a task each.
        tokenizer: that made the ids.
        tasks: name of the task of samples of so many images, where it is declared.

    Raises:
        UserError: a sample is not of complete images.
    """
    counts = [Counter(_images_per_sample(file, tokenizer)) for file in files]
    total: dict[str, Counter[int]] = {}
    for file, count in zip(files, counts, strict=True):
        total.setdefault(require_name(file)[1], Counter()).update(count)
    found = []
    for file, count in zip(files, counts, strict=True):
        task = require_name(file)[1]
        # Of equally frequent ones, the longest.
        usual = max(total[task], key=lambda images: (total[task][images], images))
        for images in sorted(count):
            name = tasks.get(images, task if images == usual else f"{task}_{images}")
            length = images * tokenizer.tokens_per_image
            read = partial(_read_of_length, file, length)
            found.append(replace(file, task=name, count=count[images], read=read))
        if len(count) > 1:
            parts = ", ".join(f"{each.count:,} in {each.task}" for each in found[-len(count) :])
            log(f"convert: {file.path} has samples of {sorted(count)} images: {parts}")
    return found


def _images_per_sample(file: TokenFile, tokenizer: TokenSource) -> Iterator[int]:
    tokens = tokenizer.tokens_per_image
    for number, ids in enumerate(file.read(), 1):
        if not len(ids) or len(ids) % tokens:
            raise UserError(
                f"{file.path}: sample {number} has {len(ids)} tokens, which are not a multiple of "
                f"the {tokens} tokens per image (tokenizer={tokenizer.name}): set tokenizer=PATH "
                "to the one that made them, or bos and eos"
            )
        yield len(ids) // tokens


def _read_of_length(file: TokenFile, length: int) -> Iterator[Ids]:
    return (ids for ids in file.read() if len(ids) == length)


def write_shards(
    file: TokenFile, output: Path, tokenizer: TokenSource, kind: str, overwrite: bool
) -> None:
    """Write samples of one length as token shards of the tokenizer that made them.

    Those that replace others are not put in place: `put_in_place` has to follow.

    Args:
        file: from `split_by_length`.
        kind: the format of the file, for the manifest.

    Raises:
        UserError: other shards are there.
    """
    split, task = require_name(file)
    tokens = tokenizer.tokens_per_image
    images_per_example = len(next(file.read())) // tokens
    images = plan_images(split, task, source=kind, seed=0, image_size=tokenizer.image_size)
    images = replace(
        images, images_per_example=images_per_example, settings={"file": file.path.name}
    )
    plan = plan_tokens(
        images,
        file.count,
        tokens_per_image=tokens,
        vocab_size=len(tokenizer.codebook),
        fingerprint=tokenizer.fingerprint,
    )
    plan = replace(plan, images_digest=_file_digest(file.path))
    write_codebook(output, tokenizer.codebook, tokenizer.fingerprint, overwrite, in_place=False)
    with Progress(file.count, "convert", "samples") as bar:
        samples = _ReshapedSamples(file, (images_per_example, tokens), bar)
        write_tokens(output, plan, samples.slice, overwrite, in_place=False)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()[:16]


class _ReshapedSamples:
    """The samples of a file as examples, read once as long as they are asked for in order."""

    def __init__(self, file: TokenFile, shape: tuple[int, int], bar: Progress) -> None:
        self.shape, self.bar = shape, bar
        self.position, self.samples = 0, file.read()

    def slice(self, start: int, stop: int) -> Iterable[Ids]:
        """Examples (1, k, N) from start to stop."""
        self.bar.skip(start - self.position)
        for ids in islice(self.samples, start - self.position, stop - self.position):
            self.bar.update()
            yield ids.reshape(1, *self.shape)
        self.position = stop
