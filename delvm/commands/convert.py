"""`delvm convert`: token files of other projects to token shards, back, and into each other."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from delvm.commands.app import verb_main
from delvm.configs.verbs import ConvertConfig
from delvm.data.shards import token_files as shards
from delvm.data.shards.replacement import finish_replacing, put_in_place, sweep
from delvm.errors import UserError
from delvm.interop import token_files as formats
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_tokenizer
from delvm.models.token_space import TokenSpace
from delvm.progress import track
from delvm.storage import read_json, write_json

UNFINISHED = ".unfinished_convert.json"  # what the output holds a part of
SUFFIXES = {"internlm_bin": ".bin", "lvm_jsonl": ".jsonl"}
READ: dict[str, Callable[[Path, TokenSpace], Iterator[Any]]] = {
    "internlm_bin": formats.read_internlm,
    "lvm_jsonl": formats.read_lvm,
}
WRITE = {"internlm_bin": formats.write_internlm, "lvm_jsonl": formats.write_lvm}


def run(cfg: ConvertConfig) -> None:
    """Convert, and print what was written."""
    source, output, target = Path(cfg.input), Path(cfg.output_dir), cfg.output_format
    space = TokenSpace(cfg.codebook_size, cfg.bos, cfg.eos)
    kind = shards.detect_format(source, SUFFIXES)
    if kind == target == "shards":
        raise UserError(
            f"input={source} holds shards already: set output_format=internlm_bin or lvm_jsonl"
        )
    if kind == "shards":
        files = list(shards.list_shards(source))
    else:
        read = READ[kind]
        files = list(shards.list_files(source, SUFFIXES[kind], lambda file: read(file, space)))
    if target == "shards":
        _to_shards(files, output, kind, cfg)
    else:
        _to_files(files, output, space, cfg)


def _to_shards(files: list[shards.TokenFile], output: Path, kind: str, cfg: ConvertConfig) -> None:
    """Token shards of each file."""
    tokenizer = _tokenizer(cfg)
    files = [
        replace(file, split=cfg.split or file.split, task=cfg.task or file.task) for file in files
    ]
    names: dict[tuple[str, str], Path] = {}
    for file in files:
        name = shards.require_name(file)
        if name in names:
            raise UserError(
                f"{names[name]} and {file.path} are both {'/'.join(name)}: convert one after the "
                "other, each with its own task=NAME"
            )
        names[name] = file.path
    finish_replacing(output)
    for file in files:
        shards.write_shards(file, output, tokenizer, kind, cfg.overwrite)
    put_in_place(output, names)
    for file in files:
        print(f"{file.path}: {file.count:,} samples to {output}/{file.split}/{file.task}")


def _to_files(
    files: list[shards.TokenFile], output: Path, space: TokenSpace, cfg: ConvertConfig
) -> None:
    """A token file of each file or directory of shards; a killed job is continued.

    Raises:
        UserError: A file exists that the same job has not written.
    """
    target = cfg.output_format
    names = [f"{each.split or each.path.stem}{SUFFIXES[target]}" for each in files]
    paths = [output / (each.task or "") / name for each, name in zip(files, names, strict=True)]
    job = {
        "settings": [target, cfg.codebook_size, cfg.bos, cfg.eos, cfg.overwrite],
        "input": [[str(each.path.resolve()), *shards.version(each.path)] for each in files],
    }
    marker = output / UNFINISHED
    continued = marker.exists() and read_json(marker, "settings of a conversion") == job
    for path in paths:
        if path.exists() and not cfg.overwrite and not continued:
            raise UserError(f"{path} exists: set overwrite=true to replace it")
    for folder in {output, *(path.parent for path in paths)}:
        sweep(folder)
    write_json(marker, job)
    for file, path in zip(files, paths, strict=True):
        if continued and not cfg.overwrite and formats.is_complete(path):
            print(f"{path}: kept, from the job that was stopped")
            continue
        WRITE[target](path, track(file.read(), file.count, "convert", "samples"), space)
        print(f"{file.path}: {file.count:,} samples to {path}")
    marker.unlink()


def _tokenizer(cfg: ConvertConfig) -> shards.TokenSource:
    tokenizer = load_tokenizer(cfg.tokenizer)
    codes = tokenizer.config.num_embeddings
    if codes != cfg.codebook_size:
        raise UserError(
            f"codebook_size={cfg.codebook_size} != num_embeddings {codes} "
            f"(tokenizer={cfg.tokenizer}): set codebook_size={codes}, or the tokenizer that made "
            "the file"
        )
    return shards.TokenSource(
        cfg.tokenizer,
        tokenizer.config.resolution,
        tokenizer.config.tokens_per_image,
        tokenizer.codebook,
        fingerprint(tokenizer),
    )


main = verb_main(__name__)
