"""What a root of shards holds: a manifest for each split and task, and the codebook of its ids.

What is to be made is planned before any of it is written (`plan_images`, `plan_tokens`), so a
finished folder can be told from one made with other settings, and a killed job continues at the
first part it had not finished. What a folder of pictures will hold is known only once its source
has been read; a folder of tokens is known to the last shard.
"""

import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from delvm import legacy
from delvm.errors import UserError
from delvm.storage import StoragePath, as_path, atomic_path, local_copy, read_json, write_json

MANIFEST, INCOMPLETE = "manifest.json", "unfinished.json"
TOKENS_PER_RECORD = 65_536
RECORDS_PER_SHARD = 16
# What manifests without these keys meant.
_LEGACY_DEFAULTS: dict[str, Any] = {
    "bf16": False,
    "images_per_example": 2,
    "settings": {},
    "chunks": [],
}
_CHUNK = {"name": str, "expected": int, "shards": int, "rejected": int}
COMMAND_FOR = {"images": "delvm prepare output={}", "tokens": "delvm encode output={}"}
HINT_FOR_OTHER_KIND = {
    "images": "give the folder that `delvm prepare` wrote",
    "tokens": "give the folder that `delvm encode` wrote",
}


@dataclass
class Manifest:
    """What one folder of shards holds.

    Attributes:
        kind: "images" or "tokens".
        task, split: As the folders are named.
        count: Examples in all the shards.
        shards: {"file": name, "count": examples} in order.
        image_size: Side of the pictures in pixels.
        tokens_per_image, vocab_size, fingerprint: Of the tokenizer; None for images.
        source, seed: Of the raw material.
        balance: How a training task was balanced, None where it was not.
        bf16: Whether the tokenizer computed in bfloat16.
        images_per_example: k: 2 for a pair.
        settings: What else the examples depend on.
        chunks: Of the source, in order: {"name", "expected", "shards", "rejected"}.
    """

    kind: str
    task: str
    split: str
    count: int
    shards: list[dict[str, Any]]
    image_size: int
    tokens_per_image: int | None
    vocab_size: int | None
    fingerprint: str | None
    source: str
    seed: int
    balance: dict[str, Any] | None
    bf16: bool = False
    images_per_example: int = 2
    settings: dict[str, Any] = field(default_factory=dict)
    chunks: list[dict[str, Any]] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """Raw items that no example could be made of."""
        return sum(chunk["rejected"] for chunk in self.chunks)

    def save(self, path: StoragePath) -> None:
        """Write it as JSON, whole or not at all."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: StoragePath) -> "Manifest":
        """Read and check a manifest.

        Raises:
            UserError: Missing, not JSON, unknown or missing keys, or values of a wrong kind.
        """
        values = _LEGACY_DEFAULTS | legacy.rename_keys(
            read_json(path, "manifest"), legacy.MANIFEST, legacy.MANIFEST_VALUES
        )
        if isinstance(balance := values.get("balance"), dict):
            values["balance"] = legacy.rename_keys(
                balance, legacy.MANIFEST_BALANCE, legacy.MANIFEST_BALANCE_VALUES
            )
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            missing, unknown = (sorted(names - values.keys()), sorted(values.keys() - names))
            raise UserError(f"manifest {path}: missing keys {missing}, unknown keys {unknown}")
        manifest = cls(**values)
        if fault := manifest._fault():
            raise UserError(f"manifest {path}: {fault}")
        return manifest

    def _fault(self) -> str | None:
        """What is wrong with the values, if anything is."""
        wanted: dict[str, type] = dict.fromkeys(
            ("count", "image_size", "seed", "images_per_example"), int
        )
        wanted |= dict.fromkeys(("task", "split", "source"), str)
        wanted |= {"shards": list, "bf16": bool, "settings": dict, "chunks": list}
        if self.kind not in COMMAND_FOR:
            return f"kind is {self.kind!r}, not one of {sorted(COMMAND_FOR)}"
        if self.kind == "tokens":
            wanted |= {"tokens_per_image": int, "vocab_size": int, "fingerprint": str}
        for name, kind in wanted.items():
            if type(getattr(self, name)) is not kind:
                return f"{name} is {getattr(self, name)!r}, not of type {kind.__name__}"
        for shard in self.shards:
            if not isinstance(shard, dict) or shard.keys() != {"file", "count"}:
                return f"shard {shard!r} is not {{file, count}}"
            if type(shard["count"]) is not int or shard["count"] < 1:
                return f"shard count {shard['count']!r} is not a number of pairs"
            # A name is never a path, so that a manifest reaches nothing outside its folder.
            if not re.fullmatch(r"\w[\w-]*(\.\d+)?\.tar", str(shard["file"])):
                return f"shard file {shard['file']!r} is not NAME.tar"
        for chunk in self.chunks:
            if not isinstance(chunk, dict) or {k: type(v) for k, v in chunk.items()} != _CHUNK:
                return f"chunk {chunk!r} is not {{{', '.join(_CHUNK)}}}"
        if self.images_per_example < 1:
            return f"images_per_example is {self.images_per_example}, below 1"
        if self.count != sum(shard["count"] for shard in self.shards):
            return f"count {self.count} is not the sum of its shards"
        return None


def plan_images(
    split: str,
    task: str,
    *,
    source: str,
    seed: int,
    image_size: int,
    settings: dict[str, Any] | None = None,
    shard_size: int = 1000,
) -> Manifest:
    """What a folder of pictures is made with; how many there will be is not known yet."""
    if shard_size < 1:
        raise UserError(f"shard_size={shard_size} is below 1: set shard_size=1000")
    made = {"shard_size": shard_size} | (settings or {})
    return Manifest(
        "images",
        task,
        split,
        0,
        [],
        image_size,
        None,
        None,
        None,
        source,
        seed,
        None,
        settings=made,
    )


def plan_tokens(
    pairs: Manifest,
    count: int,
    *,
    tokens_per_image: int,
    vocab_size: int,
    fingerprint: str,
    balance: dict[str, Any] | None = None,
    bf16: bool = False,
) -> Manifest:
    """What the folder of tokens of `pairs` will hold, balanced to `count` examples.

    Raises:
        UserError: More codes than uint16 can number.
    """
    if vocab_size > 1 << 16:
        raise UserError(f"vocab_size {vocab_size} (tokenizer) > {1 << 16}, the limit of a shard")
    per_record = examples_per_record(pairs.images_per_example * tokens_per_image)
    values = asdict(pairs) | {
        "kind": "tokens",
        "chunks": [],
        "count": count,
        "shards": _split(count, per_record * RECORDS_PER_SHARD),
        "tokens_per_image": tokens_per_image,
        "vocab_size": vocab_size,
        "fingerprint": fingerprint,
        "balance": balance,
        "bf16": bf16,
    }
    return Manifest(**values)


def _split(count: int, size: int) -> list[dict[str, Any]]:
    starts = range(0, count, size)
    return [
        {"file": f"{number:06d}.tar", "count": min(size, count - start)}
        for number, start in enumerate(starts)
    ]


def examples_per_record(tokens: int) -> int:
    """How many examples of that many tokens a record of token ids holds."""
    return max(1, TOKENS_PER_RECORD // tokens)


def member_names(pictures: int) -> tuple[str, ...]:
    """Names of the files of an example of k pictures, after its key."""
    if pictures == 2:
        return ("input.png", "target.png")
    return tuple(f"{number:03d}.png" for number in range(pictures))


def pending(root: StoragePath, plan: Manifest, overwrite: bool = False) -> list[dict[str, Any]]:
    """The shards of a plan still to be written: all, those a killed job left, or none.

    Raises:
        UserError: The folder is finished but was made with other settings.
    """
    folder = as_path(root) / plan.split / plan.task
    if (folder / MANIFEST).exists():
        if overwrite:
            return plan.shards
        found = Manifest.load(folder / MANIFEST)
        if found != plan:
            said = difference(found, plan)
            raise UserError(f"{folder} {said}: set overwrite=true to replace it")
    elif not (folder / INCOMPLETE).exists() or Manifest.load(folder / INCOMPLETE) != plan:
        return plan.shards
    return [shard for shard in plan.shards if not (folder / shard["file"]).exists()]


def difference(found: Manifest, plan: Manifest) -> str:
    """What a folder was made with, and what is asked for, where they differ."""
    old, new = ({**asdict(each), **each.settings} for each in (found, plan))
    names = [n for n in old | new if old.get(n) != new.get(n) and n not in ("shards", "settings")]
    names = names or ["shards"]
    made, asked = (", ".join(f"{n}={values.get(n)}" for n in names) for values in (old, new))
    return f"was made with {made}, asked for is {asked}"


def load_manifests(root: StoragePath, split: str, kind: str) -> dict[str, Manifest]:
    """The manifests of a split by task, in the order of their names.

    Raises:
        UserError: None there (the message says what to run), shards of another kind, or token
            shards that do not go together.
    """
    folder = as_path(root) / split
    made_by = COMMAND_FOR[kind].format(root)
    manifests: dict[str, Manifest] = {}
    found: list[StoragePath] = [*folder.iterdir()] if folder.is_dir() else []
    for path in sorted(found, key=lambda each: each.name):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if not (path / MANIFEST).exists():
            raise UserError(f"{path} is not finished: run `{made_by}` again to continue")
        manifest = Manifest.load(path / MANIFEST)
        if (manifest.split, manifest.task) != (split, path.name):
            raise UserError(f"{path} holds {manifest.split}/{manifest.task}: was it renamed?")
        if manifest.kind != kind:
            raise UserError(
                f"{path} holds {manifest.kind}, not {kind}: {HINT_FOR_OTHER_KIND[kind]}"
            )
        manifests[path.name] = manifest
    if not manifests:
        raise UserError(f"no {kind} in {folder}: run `{made_by}` first")
    for name in ("image_size", "tokens_per_image", "vocab_size", "fingerprint"):
        values = {task: getattr(manifest, name) for task, manifest in manifests.items()}
        if len(set(values.values())) > 1:
            raise UserError(f"{folder}: {name} differs between tasks, {values}: run `{made_by}`")
    if kind == "tokens":
        made, codes = next(iter(manifests.values())).fingerprint, read_codebook(root)[1]
        if made != codes:
            raise UserError(
                f"{folder} was encoded by tokenizer {made}, {root} holds the codebook of {codes}: "
                f"run `{made_by} overwrite=true`"
            )
    return manifests


def write_codebook(
    root: StoragePath, codebook: Tensor, fingerprint: str, overwrite: bool = False
) -> None:
    """Keep the codes (V, d) that ids stand for, so that a student can be trained on ids alone.

    Raises:
        UserError: The root holds another tokenizer's codes.
    """
    path = as_path(root) / "codebook.safetensors"
    if path.exists():
        found = read_codebook(root)[1]
        if found == fingerprint:
            return
        if not overwrite:
            raise UserError(
                f"{root} holds tokens of tokenizer {found}, this one is {fingerprint}: "
                "set overwrite=true to replace them, or another output"
            )
    codes = codebook.detach().float().cpu().contiguous()
    with atomic_path(path) as part:
        # Not save_file, which would make a file that nobody else may read.
        part.write_bytes(save({"codebook": codes}, metadata={"fingerprint": fingerprint}))


def read_codebook(root: StoragePath) -> tuple[Tensor, str]:
    """The codes (V, d) float32 of a token root, and the fingerprint of their tokenizer.

    Raises:
        UserError: Missing, or not a codebook.
    """
    path = as_path(root) / "codebook.safetensors"
    if not path.exists():
        raise UserError(f"codebook not found: {path}: run `{COMMAND_FOR['tokens'].format(root)}`")
    try:
        with safe_open(local_copy(path), framework="pt") as file:
            codebook, metadata = file.get_tensor("codebook"), file.metadata() or {}
            return codebook, metadata["fingerprint"]
    except (SafetensorError, KeyError, OSError) as error:
        raise UserError(f"codebook {path} cannot be read: {error}") from None
