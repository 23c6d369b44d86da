"""What each verb can be told, and how Hydra learns of it.

A schema is a dataclass. Each config file starts with one (``defaults: [/schema/...@_here_]``),
so that a mistyped key or a value of the wrong type is refused when the config is composed. A
verb receives its schema as a plain object.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf

from delvm.configs.store import schema_of
from delvm.data.augment import BalanceConfig
from delvm.data.encode.executors import EXECUTORS
from delvm.data.sources import SOURCES


class Device(Enum):
    """Where networks run; auto is the first GPU, or else the CPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Subject(Enum):
    """What is evaluated."""

    students = "students"
    tokenizer = "tokenizer"


@dataclass
class PrepareConfig:
    """Draw or read a source's examples and write them as image shards.

    Attributes:
        splits: which of train, val and test.
        shard_size: examples a shard.
        max_reject_fraction: most of a task's raw items that may be unreadable; above it the job
            ends with exit code 3, and what was written stays.
        overwrite: whether folders made with other settings are replaced.
    """

    source: Any = MISSING
    output: str = "outputs/shapes/pairs"
    splits: list[str] = field(default_factory=lambda: ["train", "val", "test"])
    shard_size: int = 1000
    max_reject_fraction: float = 0.05
    overwrite: bool = False


@dataclass
class EncodeConfig:
    """Turn image shards into token shards.

    Attributes:
        input: root of the image shards.
        output: root of the token shards.
        tokenizer: a checkpoint, an exported folder, or "shapes" (the one that ships).
        balance: how rare training tasks catch up.
        executor: how the shards are written.
        batch_size: pictures encoded at a time.
        fast: whether the tokenizer computes in bfloat16; a few in a hundred ids then differ.
        splits: which of train, val and test.
        seed: seeds the copies made by augmentation.
        overwrite: whether folders made with other settings are replaced.
    """

    input: str = "outputs/shapes/pairs"
    output: str = "outputs/shapes/tokens"
    tokenizer: str = "shapes"
    balance: BalanceConfig = MISSING
    executor: Any = MISSING
    batch_size: int = 64
    fast: bool = False
    device: Device = Device.auto
    splits: list[str] = field(default_factory=lambda: ["train", "val", "test"])
    seed: int = 0
    overwrite: bool = False


@dataclass
class GatherConfig:
    """Put the training runs below a folder into one table.

    Attributes:
        input: folder of a sweep, or any above runs.
        output: a CSV file; one that is no such table is not replaced.
    """

    input: str = MISSING
    output: str = MISSING


@dataclass
class GenerateConfig:
    """Prompt a student with pairs and draw the answers to queries.

    Attributes:
        prompt: folder of ``*_img.*`` and ``*_label.*``, at least one pair.
        query: a picture, or a folder of pictures.
        output: a file for one answer, or a folder.
        temperature: above 0, tokens are drawn.
        expected: at temperature 0, whether the code nearest to the expected one is taken each
            time, or the likeliest one.
    """

    prompt: str = MISSING
    query: str = MISSING
    output: str = "outputs/generate"
    tokenizer: str = "shapes"
    student: str = "shapes"
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    expected: bool = True
    seed: int = 0
    batch_size: int = 32
    device: Device = Device.auto


@dataclass
class EvaluateConfig:
    """Score students on held-out pairs, or a tokenizer on their pictures.

    Attributes:
        subject: students, beside the tokenizer's ceiling and trivial baselines, or the tokenizer
            alone: how it draws pictures and uses its codes.
        students: name in the report -> checkpoint.
        extractor: TorchScript file, pictures (B, 3, H, H) uint8 -> features (B, F), for the
            rFID of a tokenizer; None leaves rFID out.
        tasks: which tasks; empty takes all that the shards hold.
        queries: queries a task; of a tokenizer, pairs a task.
        pairs: pairs in a prompt.
        title: of the report.
        expected: as for `delvm generate`.
    """

    input: str = "outputs/shapes/pairs"
    output: str = "outputs/evaluate"
    tokenizer: str = "shapes"
    subject: Subject = Subject.students
    students: dict[str, str] = field(default_factory=dict)
    extractor: str | None = None
    title: str = "Evaluation"
    tasks: list[str] = field(default_factory=list)
    queries: int = 100
    pairs: int = 3
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    expected: bool = True
    seed: int = 0
    batch_size: int = 32
    device: Device = Device.auto


@dataclass
class InspectConfig:
    """Look at image or token shards as pictures and numbers; exit code 3 if something is wrong.

    Attributes:
        input: root of the shards.
        tokenizer: draws the ids of token shards.
        pictures: pairs drawn at random, a task.
        seed: of the choice.
    """

    input: str = "outputs/shapes/tokens"
    output: str = "outputs/inspect"
    tokenizer: str = "shapes"
    pictures: int = 8
    seed: int = 0
    device: Device = Device.auto


class Format(Enum):
    """Token shards, or the token files of another project."""

    shards = "shards"
    internlm_bin = "internlm_bin"
    lvm_jsonl = "lvm_jsonl"


@dataclass
class ConvertConfig:
    """Turn other projects' token files into token shards, back, or into each other.

    Attributes:
        input: a .bin or a .jsonl, a folder of such files, or a root of token shards; which it is
            is recognised.
        output: folder: TASK/SPLIT.bin or TASK/SPLIT.jsonl, or the root of the shards.
        to: what is written.
        tokenizer: the one that made the ids, which foreign files do not say; for shards.
        codes: ids of pictures are in [0, codes).
        bos, eos: ids that begin and end each line of a foreign file; None = no such id.
        task, split: of the shards, where TASK/SPLIT.bin does not tell.
    """

    input: str = MISSING
    output: str = MISSING
    to: Format = Format.shards
    tokenizer: str = "shapes"
    codes: int = 8192
    bos: int | None = None
    eos: int | None = None
    task: str | None = None
    split: str | None = None
    overwrite: bool = False


class ExportFormat(Enum):
    """What other programs read."""

    llama = "llama"
    internlm_hf = "internlm_hf"
    open_muse = "open_muse"


class Precision(Enum):
    """How numbers are written."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


@dataclass
class ExportConfig:
    """Write a checkpoint as another program reads it.

    Attributes:
        checkpoint: whatever `delvm.load_student` or `delvm.load_tokenizer` reads.
        format: llama and internlm_hf for a student, open_muse for a tokenizer.
        output: folder, of a config.json and a model.safetensors.
        dtype: of the weights.
        overwrite: whether a folder that holds a config.json is replaced.
    """

    checkpoint: str = MISSING
    format: ExportFormat = MISSING
    output: str = MISSING
    dtype: Precision = Precision.float32
    overwrite: bool = False


Groups = dict[str, dict[str, type]]


def _schemas_of(options: Mapping[str, type]) -> dict[str, type]:
    return {name: schema_of(target) for name, target in options.items()}


_LIGHT: dict[str, tuple[type, Groups]] = {
    "prepare": (PrepareConfig, {"source": _schemas_of(SOURCES)}),
    "encode": (
        EncodeConfig,
        {"balance": {"balance": BalanceConfig}, "executor": _schemas_of(EXECUTORS)},
    ),
    "runs": (GatherConfig, {}),
    "generate": (GenerateConfig, {}),
    "evaluate": (EvaluateConfig, {}),
    "inspect": (InspectConfig, {}),
    "convert": (ConvertConfig, {}),
    "export": (ExportConfig, {}),
}


def schemas(verb: str) -> tuple[type, Groups]:
    """A verb's own schema, and for each of its groups the schemas by name."""
    if verb == "train":
        # Reads the networks' own configs, and so imports torch.
        from delvm.commands.schema_train import SCHEMAS, TrainSchema

        return TrainSchema, SCHEMAS
    return _LIGHT[verb]


def _node(schema: type) -> DictConfig:
    """The schema as a config whose plain dictionaries take new keys from the command line."""
    node = OmegaConf.structured(schema)
    for key in node:
        if not OmegaConf.is_missing(node, key):
            value = node._get_node(key)
            if isinstance(value, DictConfig) and value._metadata.object_type is dict:
                OmegaConf.set_struct(value, False)
    return node


def register(verb: str) -> None:
    """Make a verb's schemas known to Hydra."""
    schema, groups = schemas(verb)
    store = ConfigStore.instance()
    store.store(group="schema", name=verb, node=_node(schema), provider="delvm")
    for group, options in groups.items():
        for name, each in options.items():
            store.store(group=f"schema/{group}", name=name, node=_node(each), provider="delvm")
