"""What a root of shards holds: a manifest for each split and task, and the codebook of its ids.

All output is planned before any of it is written (`plan_images`, `plan_tokens`), so a finished
directory can be distinguished from one made with other settings, and a killed job continues at the
first shard that is missing. How many images a directory will hold is known only after its source
has been read; for tokens the plan lists every shard.
"""

import re
from dataclasses import asdict, dataclass, field, fields, replace
from hashlib import blake2b
from types import NoneType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from delvm import legacy
from delvm.data.shards.codebook import read_codebook
from delvm.data.shards.replacement import (
    INCOMPLETE,
    MANIFEST,
    finish_replacing,
)
from delvm.data.types import SPLITS
from delvm.errors import UserError
from delvm.storage import (
    StoragePath,
    as_path,
    read_json,
    write_json,
)

TokenIds: TypeAlias = npt.NDArray[np.uint16]  # (n, k, N): examples, images per example, tokens

TOKENS_PER_RECORD = 65_536
RECORDS_PER_SHARD = 16
# Values of keys that manifests of earlier versions do not have.
_LEGACY_DEFAULTS: dict[str, Any] = {
    "bf16": False,
    "images_per_example": 2,
    "settings": {},
    "chunks": [],
    "images_digest": None,
}
_CHUNK_TYPES = {"name": str, "expected": int, "shards": int, "rejected": int}
_CHUNK_DIGESTS = {"inputs": "", "digest": ""}  # earlier versions have none
COMMAND_FOR = {"images": "delvm prepare output_dir={}", "tokens": "delvm encode output_dir={}"}
HINT_FOR_OTHER_KIND = {
    "images": "give the directory that `delvm prepare` wrote",
    "tokens": "give the directory that `delvm encode` wrote",
}


@dataclass
class Manifest:
    """What one directory of shards holds.

    Attributes:
        kind: "images" or "tokens".
        task, split: As in the path ROOT/SPLIT/TASK.
        count: Examples in all the shards.
        shards: {"file": name, "count": examples} in order.
        image_size: Side of the images in pixels.
        tokens_per_image, vocab_size, fingerprint: Of the tokenizer; None for images.
        source, seed: Name of the data source, and seed of everything random about it.
        balance: How a training task was balanced; None if it was not.
        bf16: Whether the tokenizer computed in bfloat16.
        images_per_example: k; 2 for pairs.
        settings: What else the examples depend on.
        chunks: Chunks of the source, in order: {"name", "expected", "shards", "rejected"}, and
            digests of the files that it was read from, "inputs", and of its shards, "digest"; ""
            where that is not known.
        images_digest: Of the image shards that tokens were encoded from; None if not known.
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
    images_digest: str | None = None

    @property
    def digest(self) -> str | None:
        """Of the contents of all image shards; None if an earlier version has written any."""
        digests = [chunk["digest"] for chunk in self.chunks]
        if not all(digests):
            return None
        return blake2b("".join(digests).encode(), digest_size=8).hexdigest() if digests else None

    @property
    def rejected(self) -> int:
        """Number of raw items that no example could be made of."""
        return sum(chunk["rejected"] for chunk in self.chunks)

    @property
    def resize(self) -> str:
        """How the source made images square, a `ResizeMode`; "" if it did not, or is unknown."""
        value = self.settings.get("resize", "")
        return value if isinstance(value, str) else ""

    def save(self, path: StoragePath) -> None:
        """Write it as JSON, atomically."""
        write_json(path, asdict(self))

    @classmethod
    def load(cls, path: StoragePath) -> "Manifest":
        """Read and check a manifest.

        Raises:
            UserError: The file is missing or not JSON, keys are missing or unknown, or a value has
                the wrong type.
        """
        values = _LEGACY_DEFAULTS | legacy.rename_keys(
            read_json(path, "manifest"), legacy.MANIFEST, legacy.MANIFEST_VALUES
        )
        if isinstance(balance := values.get("balance"), dict):
            values["balance"] = legacy.rename_keys(
                balance, legacy.MANIFEST_BALANCE, legacy.MANIFEST_BALANCE_VALUES
            )
        if isinstance(settings := values["settings"], dict):
            values["settings"] = legacy.upgrade_source_settings(str(values.get("source")), settings)
        if isinstance(chunks := values["chunks"], list):
            values["chunks"] = [
                _CHUNK_DIGESTS | each if isinstance(each, dict) else each for each in chunks
            ]
        names = {field.name for field in fields(cls)}
        if values.keys() != names:
            missing, unknown = (sorted(names - values.keys()), sorted(values.keys() - names))
            raise UserError(f"manifest {path}: missing keys {missing}, unknown keys {unknown}")
        manifest = cls(**values)
        if error := manifest._error():
            raise UserError(f"manifest {path}: {error}")
        return manifest

    def _error(self) -> str | None:
        """The first value that is invalid, with the reason."""
        expected: dict[str, type] = dict.fromkeys(
            ("count", "image_size", "seed", "images_per_example"), int
        )
        expected |= dict.fromkeys(("task", "split", "source"), str)
        expected |= {"shards": list, "bf16": bool, "settings": dict, "chunks": list}
        if self.kind not in list(COMMAND_FOR):
            return f"kind is {self.kind!r}, not one of {sorted(COMMAND_FOR)}"
        expected |= {"tokens_per_image": NoneType, "vocab_size": NoneType, "fingerprint": NoneType}
        if self.kind == "tokens":
            expected |= {"tokens_per_image": int, "vocab_size": int, "fingerprint": str}
        for name, kind in expected.items():
            if type(getattr(self, name)) is not kind:
                return f"{name} is {getattr(self, name)!r}, not of type {kind.__name__}"
        for shard in self.shards:
            if not isinstance(shard, dict) or shard.keys() != {"file", "count"}:
                return f"shard {shard!r} is not {{file, count}}"
            # The order of a shard's examples is int32.
            if type(shard["count"]) is not int or not 1 <= shard["count"] < 2**31:
                return f"shard count {shard['count']!r} is not a number of examples"
            # A name is never a path, so that a manifest reaches nothing outside its directory.
            if not re.fullmatch(r"\w[\w-]*(\.\d+)?\.tar", str(shard["file"])):
                return f"shard file {shard['file']!r} is not NAME.tar"
        for chunk in self.chunks:
            if not isinstance(chunk, dict) or {
                k: type(v) for k, v in chunk.items()
            } != _CHUNK_TYPES | dict.fromkeys(_CHUNK_DIGESTS, str):
                return f"chunk {chunk!r} is not {{{', '.join(_CHUNK_TYPES)}}}"
        if not isinstance(self.images_digest, str | None):
            return f"images_digest is {self.images_digest!r}, not of type str"
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
    """The settings a directory of images is made with; its shards are not known yet."""
    if shard_size < 1:
        raise UserError(f"shard_size={shard_size} is below 1: set shard_size=1000")
    return Manifest(
        kind="images",
        task=task,
        split=split,
        count=0,
        shards=[],
        image_size=image_size,
        tokens_per_image=None,
        vocab_size=None,
        fingerprint=None,
        source=source,
        seed=seed,
        balance=None,
        settings={"shard_size": shard_size} | (settings or {}),
    )


def plan_tokens(
    images: Manifest,
    count: int,
    *,
    tokens_per_image: int,
    vocab_size: int,
    fingerprint: str,
    balance: dict[str, Any] | None = None,
    bf16: bool = False,
) -> Manifest:
    """The complete manifest of the tokens of `images`, balanced to `count` examples.

    Raises:
        UserError: The vocabulary does not fit into uint16.
    """
    if vocab_size > 1 << 16:
        raise UserError(f"vocab_size {vocab_size} (tokenizer) > {1 << 16}, the limit of a shard")
    per_record = examples_per_record(images.images_per_example * tokens_per_image)
    return replace(
        images,
        kind="tokens",
        chunks=[],
        images_digest=images.digest,
        count=count,
        shards=_shards_of(count, per_record * RECORDS_PER_SHARD),
        tokens_per_image=tokens_per_image,
        vocab_size=vocab_size,
        fingerprint=fingerprint,
        balance=balance,
        bf16=bf16,
    )


def _shards_of(count: int, size: int) -> list[dict[str, Any]]:
    starts = range(0, count, size)
    return [
        {"file": f"{number:06d}.tar", "count": min(size, count - start)}
        for number, start in enumerate(starts)
    ]


def examples_per_record(tokens: int) -> int:
    """Examples in one record of token ids, for examples of that many tokens."""
    return max(1, TOKENS_PER_RECORD // tokens)


def member_names(images_per_example: int) -> tuple[str, ...]:
    """Names of the files of an example of k images, after its key."""
    if images_per_example == 2:
        return ("input.png", "target.png")
    return tuple(f"{number:03d}.png" for number in range(images_per_example))


def ids_error(array: npt.NDArray[Any], manifest: Manifest) -> str | None:
    """What is wrong with token ids (n, k, N), in dtype, shape or range; None if nothing is."""
    assert manifest.vocab_size is not None
    if not np.issubdtype(array.dtype, np.integer):
        return f"{array.dtype} is not an integer type"
    k, n = manifest.images_per_example, manifest.tokens_per_image
    if array.ndim != 3 or array.shape[1:] != (k, n) or not len(array):
        return f"shape {array.shape} is not (n, {k}, {n})"
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= manifest.vocab_size:
        return f"id {low if low < 0 else high} is outside [0, {manifest.vocab_size})"
    return None


def is_building(folder: StoragePath, plan: Manifest) -> bool:
    """Whether a directory is being built, or was when its job was killed, by this plan."""
    try:
        return (folder / INCOMPLETE).exists() and Manifest.load(folder / INCOMPLETE) == plan
    except UserError:  # another process is starting or finishing it at this moment
        return False


def describe_difference(found: Manifest, plan: Manifest) -> str:
    """What a directory was made with, and what is requested, where they differ."""
    old, new = ({**asdict(each), **each.settings} for each in (found, plan))
    names = [n for n in old | new if old.get(n) != new.get(n) and n not in ("shards", "settings")]
    names = names or ["shards"]
    if "images_digest" in names and set(names) <= {"images_digest", "count"}:
        return (
            f"was made from other images (digest {found.images_digest}, {found.count:,} examples) "
            f"than there are now (digest {plan.images_digest}, {plan.count:,} examples)"
        )
    made, requested = (", ".join(f"{n}={values.get(n)}" for n in names) for values in (old, new))
    return f"was made with {made}, requested is {requested}"


def load_manifest(root: StoragePath, split: str, task: str, kind: str) -> Manifest:
    """The manifest of one task, after all the checks of its split."""
    manifests = load_manifests(root, split, kind)
    if task not in manifests:
        raise UserError(f"no task '{task}' in {as_path(root) / split}, only {sorted(manifests)}")
    return manifests[task]


def load_manifests_if_any(root: StoragePath, split: str, kind: str) -> dict[str, Manifest]:
    """As `load_manifests`, without tasks that have no examples; none if there is no such split.

    Raises:
        UserError: As for `load_manifests`, of shards that are there.
    """
    folder = as_path(root) / split
    finish_replacing(root)
    found: list[StoragePath] = [*folder.iterdir()] if folder.is_dir() else []
    if not any(path.is_dir() and not path.name.startswith(".") for path in found):
        return {}
    manifests = load_manifests(root, split, kind)
    return {task: manifest for task, manifest in manifests.items() if manifest.count}


def load_manifests(root: StoragePath, split: str, kind: str) -> dict[str, Manifest]:
    """The manifests of a split by task, sorted by name.

    Args:
        root: Root of the shards.
        kind: "images" or "tokens".

    Raises:
        UserError: There are none (the message names the command to run), shards are of the other
            kind, or token shards disagree with each other or with the codebook.
    """
    finish_replacing(root)
    folder = as_path(root) / split
    command = COMMAND_FOR[kind].format(root)
    manifests: dict[str, Manifest] = {}
    found: list[StoragePath] = [*folder.iterdir()] if folder.is_dir() else []
    for path in sorted(found, key=lambda each: each.name):
        if path.name.startswith(".") or not path.is_dir():
            continue
        if not (path / MANIFEST).exists():
            raise UserError(f"{path} is not finished: run `{command}` again to continue")
        manifest = Manifest.load(path / MANIFEST)
        if (manifest.split, manifest.task) != (split, path.name):
            raise UserError(f"{path} holds {manifest.split}/{manifest.task}: was it renamed?")
        if manifest.kind != kind:
            raise UserError(
                f"{path} holds {manifest.kind}, not {kind}: {HINT_FOR_OTHER_KIND[kind]}"
            )
        manifests[path.name] = manifest
    if not manifests:
        here = as_path(root)
        others = [*here.iterdir()] if here.is_dir() else []
        if others and not any(path.name in SPLITS for path in others):  # such as photographs
            raise UserError(
                f"no {kind} in {root}, which has none of {', '.join(SPLITS)}: "
                f"{HINT_FOR_OTHER_KIND[kind]}"
            )
        raise UserError(f"no {kind} in {folder}: run `{command}` first")
    for name in ("image_size", "tokens_per_image", "vocab_size", "fingerprint"):
        values = {task: getattr(manifest, name) for task, manifest in manifests.items()}
        if len(set(values.values())) > 1:
            raise UserError(f"{folder}: {name} differs between tasks, {values}: run `{command}`")
    if kind == "tokens":
        encoded_by, codebook_of = next(iter(manifests.values())).fingerprint, read_codebook(root)[1]
        if encoded_by != codebook_of:
            raise UserError(
                f"{folder} was encoded by tokenizer {encoded_by}, {root} holds the codebook of "
                f"{codebook_of}: run `{command} overwrite=true`"
            )
    return manifests
