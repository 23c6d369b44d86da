"""Load a tokenizer or a student from whatever holds one, and write our own folders.

Our folder has ``config.json`` {"format", "kind", "config", and for a student
"tokenizer_fingerprint" and "space"} and ``model.safetensors``. A Lightning checkpoint of ours
carries the same dictionary under the key ``delvm``, beside the training state; it is a file, or a
folder of the parts that several processes held (`sharded`). Other projects' layouts have a module
each: tokenizers `open_muse` and `taming`, students `internlm_hf` and `llama`, and `internlm_raw`
for both.
"""

from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor, nn

from delvm import legacy
from delvm.errors import UserError
from delvm.interop import sharded_checkpoint as sharded
from delvm.interop import weight_files as weights
from delvm.interop.formats import internlm_checkpoint as internlm_raw
from delvm.interop.formats import internlm_hf, llama, open_muse, taming
from delvm.models.attention import Backend
from delvm.models.token_space import TokenSpace
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig
from delvm.storage import atomic_dir, read_json, write_json

FORMAT = "delvm-1"
SHIPPED = Path(__file__).parent.parent / "weights"


def describe(model: VQGAN | Transformer) -> dict[str, Any]:
    """What a folder's config.json says of a model: plain values only."""
    config = {k: v.value if isinstance(v, Enum) else v for k, v in asdict(model.config).items()}
    if isinstance(model, VQGAN):
        return {"format": FORMAT, "kind": "tokenizer", "config": config}
    return {
        "format": FORMAT,
        "kind": "student",
        "config": config,
        "tokenizer_fingerprint": model.tokenizer_fingerprint,
        "space": asdict(model.space),
    }


def save_model(
    model: VQGAN | Transformer,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    state: dict[str, Tensor] | None = None,
) -> None:
    """Write a model as a folder, whole or not at all.

    Args:
        model: a tokenizer or a student.
        folder: replaced if it exists.
        dtype: of the weights on disk; float16 halves the size.
        state: the model's weights where it does not hold them whole itself.
    """
    state = model.state_dict() if state is None else state
    # Copies: a tied embedding and its head share one tensor, which safetensors would refuse.
    tensors = {k: v.detach().to("cpu", dtype, copy=True) for k, v in state.items()}
    with atomic_dir(folder) as part:
        weights.write_tensors(part / "model.safetensors", tensors)
        write_json(part / "config.json", describe(model))


def load_tokenizer(path: str | Path, device: str | torch.device = "cpu") -> VQGAN:
    """The tokenizer at ``path``, in evaluation mode and float32.

    Args:
        path: a folder of ours, or of open-muse, LVM or DeLVM; the folder of a checkpoint of
            InternLM's training, which has DeLVM's tokenizer inside (see
            `internlm_raw.read_tokenizer`); a Lightning checkpoint (.ckpt) of ours, or of
            taming-transformers with its YAML beside it; or the name of weights that ship with
            the package ("shapes").

    Raises:
        UserError: nothing is there, it holds something else, or the weights do not fit.
    """
    model = _load(path, "tokenizer", device)
    assert isinstance(model, VQGAN)
    return model


def load_student(path: str | Path, device: str | torch.device = "cpu") -> Transformer:
    """The student (or teacher) at ``path``, in evaluation mode and float32.

    ``tokenizer_fingerprint`` of the result says which tokenizer its ids belong to, where that is
    known, and ``space`` which of its ids are pictures.

    Args:
        path: a folder of ours, of InternLM or Llama in the format of transformers (LVM), or of
            a checkpoint of InternLM's training; a Lightning checkpoint (.ckpt) of ours, a file
            or a folder of parts; or the name of weights that ship with the package ("shapes").

    Raises:
        UserError: nothing is there, it holds something else, or the weights do not fit.
    """
    model = _load(path, "student", device)
    assert isinstance(model, Transformer)
    return model


def _load(path: str | Path, kind: str, device: str | torch.device) -> VQGAN | Transformer:
    place = resolve(path, kind)
    description, found = _read_folder(place, kind) if place.is_dir() else _read_checkpoint(place)
    if description.get("kind") != kind:
        raise UserError(f"{path} holds a {description.get('kind')}, not a {kind}: set {kind}=PATH")
    model = _build(description, place)
    _fill(model, found, place)
    return model.to(device).eval()


def resolve(path: str | Path, kind: str) -> Path:
    """The folder or file that ``path`` means: itself, a run's folder, or shipped weights.

    Raises:
        UserError: there is nothing of that kind.
    """
    place = Path(path)
    if place.is_dir() and not (place / "config.json").exists() and (place / kind).is_dir():
        return place / kind  # the folder of a training run
    if place.exists():
        return place
    shipped = SHIPPED / place / kind
    if not place.is_absolute() and shipped.is_dir():
        return shipped
    names = sorted(p.name for p in SHIPPED.glob("*") if (p / kind).is_dir())
    raise UserError(
        f"{kind} not found: {path} is neither a folder, a checkpoint, nor one of the weights "
        f"that ship ({', '.join(names) or 'none'}): set {kind}=PATH"
    )


def _read_folder(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    if sharded.recognises(folder):
        found = sharded.read_rest(folder) | sharded.read(folder, "state_dict.")
        return _ours(legacy.upgrade_checkpoint(found), folder)
    if internlm_raw.recognises(folder):
        read = internlm_raw.read_student if kind == "student" else internlm_raw.read_tokenizer
        return read(folder)
    description = read_json(folder / "config.json", "model config")
    if open_muse.recognises(description):
        config, found = open_muse.read(folder, description)
        return {"kind": "tokenizer", "config": config}, found
    for layout in (internlm_hf, llama):
        if layout.recognises(description):
            return layout.read(folder, description)
    if description.get("format") != FORMAT:
        raise UserError(
            f"{folder}/config.json is neither of format {FORMAT!r}, nor an open-muse VQGAN's, nor "
            f"of {internlm_hf.CLASS} or {llama.CLASS}"
        )
    return legacy.upgrade_model_metadata(description), weights.read_tensors(
        folder / "model.safetensors"
    )


def _read_checkpoint(file: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    checkpoint = weights.read_pickle(file)
    if isinstance(checkpoint, dict) and {"delvm", "state_dict"} <= checkpoint.keys():
        return _ours(legacy.upgrade_checkpoint(checkpoint), file)
    if isinstance(checkpoint, dict) and taming.recognises(checkpoint):
        config, found = taming.read(file, checkpoint)
        return {"kind": "tokenizer", "config": config}, found
    raise UserError(
        f"checkpoint {file} was written neither by `delvm train` nor by taming-transformers"
    )


def _ours(checkpoint: dict[str, Any], place: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The description and the weights in a checkpoint of `delvm train`."""
    if not {"delvm", "state_dict"} <= checkpoint.keys():
        raise UserError(f"checkpoint {place} was not written by `delvm train`")
    state = checkpoint["state_dict"]
    return checkpoint["delvm"], {
        k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")
    }


def peek(place: Path) -> Any:
    """What a checkpoint of training says, and the names of its weights; no weight is read.

    Returns:
        What the file holds, with its tensors left on disk; of a folder in parts the same, with
        only the names in ``state_dict``.

    Raises:
        UserError: it cannot be read as tensors and plain values.
    """
    if not sharded.recognises(place):
        found = weights.read_pickle(place, lazy=True)
        return legacy.upgrade_checkpoint(found) if isinstance(found, dict) else found
    lead = "state_dict."
    names = {k.removeprefix(lead) for k in sharded.names(place) if k.startswith(lead)}
    rest = sharded.read_rest(place) | {"state_dict": dict.fromkeys(names)}
    return legacy.upgrade_checkpoint(rest)


def _build(description: dict[str, Any], place: Path) -> VQGAN | Transformer:
    kind = description["kind"]
    schema: type[VQGANConfig | TransformerConfig] = (
        VQGANConfig if kind == "tokenizer" else TransformerConfig
    )
    values = dict(description.get("config") or {})
    known = {field.name for field in fields(schema)}
    if unknown := sorted(set(values) - known):
        raise UserError(f"{place}: unknown keys in the {kind} config: {', '.join(unknown)}")
    if "attention" in values:  # what computed it in training need not work where it is loaded
        values["attention"] = Backend.auto
    try:
        config = schema(**_with_enums(schema, values))
        if isinstance(config, VQGANConfig):
            return VQGAN(config)
        student = Transformer(config)
    except (TypeError, ValueError) as error:
        raise UserError(f"{place}: the {kind} config is not valid: {error}") from None
    student.tokenizer_fingerprint = str(description.get("tokenizer_fingerprint", ""))
    if (space := description.get("space")) is not None:
        student.space = _space(space, student.config.vocab_size, place)
    return student


def _with_enums(schema: type, values: dict[str, Any]) -> dict[str, Any]:
    """Fields of a config whose type is an enum, from their plain values."""
    kinds = get_type_hints(schema)
    return {
        k: kinds[k](v) if isinstance(kinds[k], type) and issubclass(kinds[k], Enum) else v
        for k, v in values.items()
    }


def _space(values: Any, vocab_size: int, place: Path) -> TokenSpace:
    """The token space that a description declares; its ids are some of the student's."""
    names = {field.name for field in fields(TokenSpace)}
    if not isinstance(values, dict) or "codes" not in values or not values.keys() <= names:
        raise UserError(f"{place}: space {values} is none of {', '.join(sorted(names))}")
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():
        most = vocab_size + (name == "codes")
        if type(value) is not int or not 0 <= value < most:
            raise UserError(f"{place}: {name} {value!r} is none of {vocab_size} ids (vocab_size)")
    return TokenSpace(**given)


def _fill(model: nn.Module, found: dict[str, Tensor], place: Path) -> None:
    """Load weights; every key and shape must match."""
    wanted = model.state_dict()
    missing, extra = sorted(set(wanted) - set(found)), sorted(set(found) - set(wanted))
    wrong = [
        f"{k} {tuple(found[k].shape)} != {tuple(v.shape)}"
        for k, v in wanted.items()
        if k in found and found[k].shape != v.shape
    ]
    parts = [("missing", missing), ("unexpected", extra), ("of another shape", wrong)]
    if faults := [f"{what}: {', '.join(names)}" for what, names in parts if names]:
        raise UserError(f"weights in {place} do not fit: {'; '.join(faults)}")
    model.load_state_dict(found)
