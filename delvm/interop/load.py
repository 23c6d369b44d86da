"""Load a tokenizer or a student from a folder, a checkpoint, or the weights that ship.

DeLVM's own folder has ``config.json`` {"format", "kind", "config", and for a student
"tokenizer_fingerprint" and "space"} and ``model.safetensors``. A Lightning checkpoint of DeLVM has
the same dictionary under the key ``delvm``, next to the training state; it is a file, or a folder
in which each process wrote its shard (`sharded_checkpoint`). Other projects' formats are in
`formats`.
"""

from dataclasses import fields
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from delvm import legacy
from delvm.errors import UserError
from delvm.interop import hub, sharded_checkpoint
from delvm.interop.formats import FORMATS, find_format
from delvm.interop.model_source import ModelData, ModelSource
from delvm.interop.save import FORMAT
from delvm.interop.weight_files import read_pickle, read_tensors, strip_wrappers
from delvm.models.attention import AttentionBackend
from delvm.models.lora import merge_adapters
from delvm.models.token_space import TokenSpace
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig
from delvm.models.weight_precision import WeightPrecision, set_weight_precision
from delvm.untrusted import schema_error

# Sizes that no weight has, and the largest that is believed.
_LIMITS = {"max_seq_len": 2**20, "resolution": 2**14, "attn_resolutions": 2**14, "rope_base": 2**40}

SCHEMAS: dict[str, type[VQGANConfig | TransformerConfig]] = {
    "tokenizer": VQGANConfig,
    "student": TransformerConfig,
}
# Suffixes of weights that mean nothing without the config in the same folder -> its name.
_CONFIG_FILES = (((".safetensors", ".bin"), "config.json"), ((".pt",), "model_config.pt"))
SHIPPED_DIR = Path(__file__).parent.parent / "weights"


def load_tokenizer(
    path: str | Path, device: str | torch.device = "cpu", *, key: str = "tokenizer"
) -> VQGAN:
    """The tokenizer at ``path``, in evaluation mode and float32.

    Args:
        path: a folder of DeLVM, open-muse or LVM; a training checkpoint of InternLM, which
            contains DeLVM's tokenizer; a Lightning checkpoint (.ckpt) of ``delvm train``, or of
            taming-transformers with its YAML next to it; the output folder of a training run; the
            name of weights that ship with the package ("shapes"); or an address on the Hub
            (``hf://USER/NAME[@REVISION]``).
        device: where to put it.
        key: the setting that names it, for errors.

    Raises:
        UserError: nothing is there, it is something else, or the weights do not fit.
    """
    model = _load(path, "tokenizer", device, key)
    assert isinstance(model, VQGAN)
    return model


def load_student(
    path: str | Path,
    device: str | torch.device = "cpu",
    precision: WeightPrecision | str = WeightPrecision.fp32,
    *,
    key: str = "student",
) -> Transformer:
    """The student (or teacher) at ``path``, in evaluation mode.

    Its ``tokenizer_fingerprint`` names the tokenizer it was trained with, where that is known, and
    its token space states which ids are codes of the tokenizer.

    Args:
        path: a folder of DeLVM; of InternLM or Llama in the format of transformers (LVM); a
            training checkpoint of InternLM; a Lightning checkpoint (.ckpt) of ``delvm train``, a
            file or a sharded folder; the output folder of a training run; the name of weights that
            ship with the package ("shapes"); or an address on the Hub
            (``hf://USER/NAME[@REVISION]``).
        device: where to put it.
        precision: of its weights: fp32, bf16, or int8 (see `delvm.models.weight_precision`).
        key: the setting that names it, for errors.

    Raises:
        UserError: nothing is there, it is something else, or the weights do not fit.
    """
    model = _load(path, "student", device, key)
    assert isinstance(model, Transformer)
    if precision != WeightPrecision.fp32:
        set_weight_precision(model, precision)
    return model


def _load(path: str | Path, kind: str, device: str | torch.device, key: str) -> VQGAN | Transformer:
    try:
        source = resolve(path, kind)
        metadata, state = _read(source, kind)
        if metadata.get("kind") != kind:
            raise UserError(f"{path} holds a {metadata.get('kind')}, not a {kind}: set {kind}=PATH")
        check_sizes(metadata, state, source)
        model = _build(metadata, source)
        _load_state(model, state, source)
    except UserError as error:
        raise UserError(str(error).replace(f"set {kind}=", f"set {key}=")) from None
    return model.to(device).eval()


def resolve(path: str | Path, kind: str) -> Path:
    """The folder or file meant by ``path``.

    That is itself, a model in a run's folder, shipped weights, or a folder of the Hub, which is
    downloaded.

    Raises:
        UserError: there is no model of that kind.
    """
    found = hub.download(path, kind) if hub.is_hub(path) else Path(path)
    if found.is_dir() and not (found / "config.json").exists() and (found / kind).is_dir():
        return found / kind  # the output folder of a training run
    if found.exists():
        return found
    shipped = SHIPPED_DIR / found / kind
    if not found.is_absolute() and shipped.is_dir():
        return shipped
    names = sorted(p.name for p in SHIPPED_DIR.glob("*") if (p / kind).is_dir())
    raise UserError(
        f"{kind} not found: {path} is not a folder, a checkpoint, or the name of shipped weights "
        f"({', '.join(names) or 'none'}): set {kind}=PATH"
    )


def describe_source(path: str) -> str:
    """Where weights come from, for reports."""
    shipped = not Path(path).exists() and (SHIPPED_DIR / path).is_dir()
    return f"weights shipped with DeLVM: {path}" if shipped else path


def _read(path: Path, kind: str) -> ModelData:
    """Metadata and weights, under the names of this version."""
    if sharded_checkpoint.can_load(path):
        metadata = sharded_checkpoint.read_metadata(path)
        return _from_lightning(metadata | sharded_checkpoint.read(path, "state_dict."), path)
    for suffixes, config in _CONFIG_FILES:
        if path.suffix in suffixes and path.is_file() and (path.parent / config).is_file():
            raise UserError(
                f"{path} has weights, and their {config} is next to it: set {kind}={path.parent}"
            )
    source = ModelSource(path)
    if source.config.get("format") == FORMAT:
        state = strip_wrappers(read_tensors(path / "model.safetensors"))
        return legacy.upgrade_model_metadata(source.config), state
    if {"delvm", "state_dict"} <= source.checkpoint.keys():
        return _from_lightning(source.checkpoint, path)
    if (found := find_format(source)) is not None:
        return found.read(source, kind)
    if path.is_dir() and not (path / "config.json").exists():
        raise UserError(_no_model(path, kind))
    where = f"{path}/config.json" if path.is_dir() else f"checkpoint {path}"
    known = ", ".join([f"{FORMAT} (`delvm train`)", *(each.summary for each in FORMATS.values())])
    raise UserError(f"{where} is not in a known format: {known}")


def _no_model(path: Path, kind: str) -> str:
    """The line for a folder without a model of that kind, with what it holds instead."""
    if held := [each for each in SCHEMAS if (path / each).is_dir()]:
        return f"{path} holds a {held[0]}, not a {kind}: set {kind}=PATH"
    if (last := path / "checkpoints" / "last.ckpt").exists():
        return f"{path} is a run that has exported no {kind}: set {kind}=PATH, such as {last}"
    return f"{path} holds no {kind}, as it has no config.json: set {kind}=PATH"


def _from_lightning(checkpoint: dict[str, Any], path: Path) -> ModelData:
    """Metadata and weights of the model in a checkpoint of `delvm train`."""
    checkpoint = legacy.upgrade_checkpoint(checkpoint)
    metadata, state = checkpoint.get("delvm"), checkpoint.get("state_dict")
    if not isinstance(metadata, dict) or not isinstance(state, dict):
        raise UserError(f"checkpoint {path} was not written by `delvm train`")
    if (name := metadata.get("class")) is not None:
        raise UserError(
            f"checkpoint {path} holds a {name}, which is not a class of DeLVM: build it, and load "
            "the checkpoint's state_dict into it (prefix 'model.')"
        )
    prefix = "model."
    bare = strip_wrappers({str(k): v for k, v in state.items()})
    model = {k.removeprefix(prefix): v for k, v in bare.items() if k.startswith(prefix)}
    try:
        return metadata, merge_adapters(model)
    except UserError as error:
        raise UserError(f"checkpoint {path}: {error}") from None


def read_metadata(path: Path) -> Any:
    """What a training checkpoint contains, without reading the weights.

    Returns:
        The checkpoint with its tensors memory-mapped; of a sharded one ``state_dict`` has only the
        names of the weights. Names are those of this version.

    Raises:
        UserError: it cannot be read as tensors and plain values.
    """
    if not sharded_checkpoint.can_load(path):
        found = read_pickle(path, lazy=True)
        return legacy.upgrade_checkpoint(found) if isinstance(found, dict) else found
    prefix = "state_dict."
    names = sharded_checkpoint.tensor_names(path)
    state = dict.fromkeys(k.removeprefix(prefix) for k in names if k.startswith(prefix))
    metadata = sharded_checkpoint.read_metadata(path)
    return legacy.upgrade_checkpoint(metadata | {"state_dict": state})


def check_sizes(metadata: dict[str, Any], state: dict[str, Tensor], path: Path) -> None:
    """Refuse a config that asks for more memory than its weights bear out, before it is built.

    Raises:
        UserError: a size in it is larger than all that is in the weights, or out of range.
    """
    config, schema = metadata.get("config"), SCHEMAS[metadata["kind"]]
    if not isinstance(config, dict):
        return  # refused when it is built
    defaults = {field.name: field.default for field in fields(schema)}
    tensors = [each for each in state.values() if isinstance(each, Tensor)]
    sides = [side for tensor in tensors for side in tensor.shape]
    largest = max([len(state), *sides])
    for name, value in config.items():
        default = defaults.get(name)  # of parts that this network lacks
        limit = max(_LIMITS.get(name, largest), default if isinstance(default, int) else 0)
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, int) and each > limit:
                raise UserError(
                    f"{path}: {name} {each} in the config does not fit the weights, in which no "
                    f"size is above {limit:,}"
                )


def _build(metadata: dict[str, Any], path: Path) -> VQGAN | Transformer:
    """A model with fresh weights, as its metadata describes it."""
    kind = metadata["kind"]
    schema = SCHEMAS[kind]
    values = metadata.get("config")
    if not isinstance(values, dict):
        raise UserError(f"{path}: the {kind} config is missing or not an object")
    values = dict(values)
    known = {field.name for field in fields(schema)}
    if unknown := sorted(map(str, set(values) - known)):
        raise UserError(f"{path}: unknown keys in the {kind} config: {', '.join(unknown)}")
    hints = get_type_hints(schema)
    if wrong := schema_error(values, {f"{key}?": _plain_schema(hints[key]) for key in known}):
        raise UserError(f"{path}: invalid {kind} config: {wrong}")
    if "attention" in values:  # the backend used in training may not work here
        values["attention"] = AttentionBackend.auto
    try:
        config = schema(**_parse_enums(schema, values))
        if isinstance(config, VQGANConfig):
            return VQGAN(config)
        student = Transformer(config)
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: invalid {kind} config: {error}") from None
    student.tokenizer_fingerprint = str(metadata.get("tokenizer_fingerprint", ""))
    student.resize = str(metadata.get("resize", ""))
    if (space := metadata.get("space")) is not None:
        student.token_space = _parse_token_space(space, student.config.vocab_size, path)
    return student


def _plain_schema(hint: Any) -> Any:
    """The schema of a config's field in JSON: an enum is its plain value."""
    if isinstance(hint, type) and issubclass(hint, Enum):
        return str
    options = tuple(None if each is NoneType else each for each in get_args(hint))
    return [options[0]] if get_origin(hint) is list else options or hint


def _parse_enums(schema: type, values: dict[str, Any]) -> dict[str, Any]:
    """The values of a config's fields, with enums made from their plain values."""
    types = get_type_hints(schema)
    return {
        k: types[k](v) if isinstance(types[k], type) and issubclass(types[k], Enum) else v
        for k, v in values.items()
    }


def _parse_token_space(values: Any, vocab_size: int, path: Path) -> TokenSpace:
    """The token space declared by metadata; its ids must be in the student's vocabulary."""
    names = {field.name for field in fields(TokenSpace)}
    if not isinstance(values, dict) or "codebook_size" not in values or not values.keys() <= names:
        raise UserError(f"{path}: space {values}: expected the keys {', '.join(sorted(names))}")
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        upper = vocab_size + (name == "codebook_size")
        if type(value) is not int or not 0 <= value < upper:
            raise UserError(f"{path}: {name} {value!r} is not one of {vocab_size} ids (vocab_size)")
    try:
        return TokenSpace(**given)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _load_state(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Load weights; every key and shape must match, and all must be in floating point."""
    if not_tensors := sorted(str(k) for k, v in state.items() if not isinstance(v, Tensor)):
        raise UserError(f"weights in {path} are not tensors: {', '.join(not_tensors)}")
    expected = model.state_dict()
    missing, extra = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [
        f"{k} {tuple(state[k].shape)} != {tuple(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    # Without their scales, integers would be taken for the weights themselves.
    quantized = [
        f"{k} {str(state[k].dtype).removeprefix('torch.')}"
        for k in expected
        if k in state and not state[k].is_floating_point()
    ]
    groups = [("missing", missing), ("unexpected", extra), ("wrong shape", wrong)]
    groups += [("not in floating point", quantized)]
    if errors := [f"{what}: {', '.join(names)}" for what, names in groups if names]:
        raise UserError(f"weights in {path} do not fit: {'; '.join(errors)}")
    model.load_state_dict(state)
