"""Token files of other projects to token shards, back, and into each other: `delvm convert`."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from delvm.data.shards import token_files as shards
from delvm.data.shards.replacement import finish_replacing, put_in_place
from delvm.errors import UserError
from delvm.interop import token_files as formats
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_tokenizer
from delvm.models.token_space import TokenSpace
from delvm.progress import track
from delvm.storage import read_json, remove_parts, write_json

UNFINISHED = ".unfinished_convert.json"  # what the output holds a part of
SUFFIXES = {"internlm_bin": ".bin", "lvm_jsonl": ".jsonl"}
READ: dict[str, Callable[[Path, TokenSpace], Iterator[Any]]] = {
    "internlm_bin": formats.read_internlm,
    "lvm_jsonl": formats.read_lvm,
}
WRITE = {"internlm_bin": formats.write_internlm, "lvm_jsonl": formats.write_lvm}


def convert(
    source: Path,
    output_dir: Path,
    output_format: str,
    space: TokenSpace,
    *,
    tokenizer: str = "shapes",
    task: str | None = None,
    split: str | None = None,
    tasks: Mapping[int, str] | None = None,
    overwrite: bool = False,
) -> Iterator[str]:
    """Convert a file, a directory of files, or a root of token shards.

    Args:
        source: what is converted.
        output_dir: of TASK/SPLIT.bin or TASK/SPLIT.jsonl, or the root of the shards.
        output_format: shards, internlm_bin or lvm_jsonl.
        space: which ids are codes, and what begins and ends a line of a foreign file.
        tokenizer: the one that made the ids, which foreign files do not name; for shards.
        task, split: of the shards, where the path does not say.
        tasks: number of images -> task, for files whose samples differ in it; samples of other
            numbers than the most frequent one are a task TASK_NUMBER without it.
        overwrite: whether existing files are replaced.

    Yields:
        A line for each file that is converted: how many samples, and where they are.

    Raises:
        UserError: the source cannot be read as such, does not fit the tokenizer, or the output
            exists.
    """
    kind = shards.detect_format(source, SUFFIXES)
    if kind == output_format == "shards":
        raise UserError(
            f"input={source} holds shards already: set output_format=internlm_bin or lvm_jsonl"
        )
    if kind == "shards":
        files = list(shards.list_shards(source))
    else:
        read = READ[kind]
        files = list(shards.list_files(source, SUFFIXES[kind], lambda file: read(file, space)))
    if output_format == "shards":
        made_by = _load_token_source(tokenizer, space.codebook_size)
        files = [replace(each, split=split or each.split, task=task or each.task) for each in files]
        yield from _to_shards(files, output_dir, made_by, kind, tasks or {}, overwrite)
    else:
        yield from _to_files(files, output_dir, output_format, space, overwrite)


def _to_shards(
    files: list[shards.TokenFile],
    output_dir: Path,
    made_by: shards.TokenSource,
    kind: str,
    tasks: Mapping[int, str],
    overwrite: bool,
) -> Iterator[str]:
    """Token shards of each file."""
    names: dict[tuple[str, str], Path] = {}
    files = shards.split_by_length(files, made_by, tasks)
    for file in files:
        name = shards.require_name(file)
        if name in names:
            raise UserError(
                f"{names[name]} and {file.path} are both {'/'.join(name)}: convert one after the "
                "other, each with its own task=NAME"
            )
        names[name] = file.path
    finish_replacing(output_dir)
    for file in files:
        shards.write_shards(file, output_dir, made_by, kind, overwrite)
    put_in_place(output_dir, names)
    for file in files:
        yield f"{file.path}: {file.count:,} samples to {output_dir}/{file.split}/{file.task}"


def _to_files(
    files: list[shards.TokenFile],
    output_dir: Path,
    output_format: str,
    space: TokenSpace,
    overwrite: bool,
) -> Iterator[str]:
    """A token file of each file or directory of shards; a killed job is continued.

    Raises:
        UserError: A file exists that the same job has not written.
    """
    names = [f"{each.split or each.path.stem}{SUFFIXES[output_format]}" for each in files]
    paths = [output_dir / (each.task or "") / name for each, name in zip(files, names, strict=True)]
    job = {
        "settings": [output_format, space.codebook_size, space.bos, space.eos, overwrite],
        "input": [[str(each.path.resolve()), *shards.version(each.path)] for each in files],
    }
    marker = output_dir / UNFINISHED
    continued = marker.exists() and read_json(marker, "settings of a conversion") == job
    for path in paths:
        if path.exists() and not overwrite and not continued:
            raise UserError(f"{path} exists: set overwrite=true to replace it")
    # Not those of other files, which another conversion may be writing.
    for path in (marker, *paths, *map(formats.meta_path, paths)):
        remove_parts(path)
    write_json(marker, job)
    for file, path in zip(files, paths, strict=True):
        if continued and not overwrite and formats.is_complete(path):
            yield f"{path}: kept, from the job that was stopped"
            continue
        samples = track(file.read(), file.count, "convert", "samples")
        count = WRITE[output_format](path, samples, space)
        yield f"{file.path}: {count:,} samples to {path}"
    marker.unlink(missing_ok=True)  # that of another conversion to the same place


def _load_token_source(path: str, codebook_size: int) -> shards.TokenSource:
    """What shards record of the tokenizer that made the ids."""
    tokenizer = load_tokenizer(path)
    codes = tokenizer.config.num_embeddings
    if codes != codebook_size:
        raise UserError(
            f"codebook_size={codebook_size} != num_embeddings {codes} (tokenizer={path}): "
            f"set codebook_size={codes}, or the tokenizer that made the file"
        )
    return shards.TokenSource(
        path,
        tokenizer.config.resolution,
        tokenizer.config.tokens_per_image,
        tokenizer.codebook,
        fingerprint(tokenizer),
    )
