"""Checkpoints of InternLM's training, as DeLVM's engine writes them, tokenizer and all.

    model_config.pt       the model's part of the training config
    model_tp0_ppK.pt      weights of the K-th stage of the pipeline, layers counted from 0 in each

The first stage holds the input embedding, which in DeLVM is a whole VQGAN of open-muse
(``embedding.vq_model``) and a projection; the last one holds the norm and the head. The
optimizer's files beside them are not read. Neither the context (2,048 in the reference's recipe)
nor the size of the tokenizer's pictures is written down anywhere.
"""

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from delvm.errors import UserError
from delvm.interop import weight_files as weights
from delvm.interop.formats import hf_decoder, open_muse
from delvm.models.transformer import Embedding
from delvm.storage import read_json

CONFIG = "model_config.pt"
TOKENIZER = "embedding.vq_model."
CODEBOOK = f"{TOKENIZER}quantize.embedding.weight"
# Keys of the config that would change what is computed -> what `Transformer` computes.
_ONLY = {"norm_type": "rmsnorm", "use_swiglu": True, "is_reward": False, "num_chunks": 1}
_NAMES = {
    "embedding.weight": "embed.weight",
    "embedding.word_embeddings.weight": "embed.weight",
    "embedding.embed_proj.weight": "embed.project.weight",
    CODEBOOK: "embed.codebook",
}
_LAYER = {
    "mixer.Wqkv": "attention.qkv",
    "mixer.out_proj": "attention.out",
    "mlp.w1": "mlp.gate",
    "mlp.w2": "mlp.up",
    "mlp.w3": "mlp.down",
}


def recognises(folder: Path) -> bool:
    """Whether a folder is of this layout."""
    return any(folder.glob("model_tp*_pp*.pt"))


def read_student(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights of the student; codebook and projection stay apart.

    Raises:
        UserError: a file is missing or cannot be read, or says what `Transformer` cannot be.
    """
    settings = _settings(folder)
    states = {file: _stage(folder / file) for file in _files(folder)}
    layers = [_count_layers(state, file) for file, state in states.items()]
    if sum(layers) != settings["num_layers"]:
        raise UserError(
            f"{folder}: num_layers {settings['num_layers']} ({CONFIG}) != "
            f"{' + '.join(map(str, layers))} layers in {', '.join(states)}"
        )
    found: dict[str, Tensor] = {}
    for first, (file, state) in zip(_starts(layers), states.items(), strict=True):
        renamed = _rename(state, first)
        if twice := sorted(found.keys() & renamed.keys()):
            raise UserError(f"{folder}/{file} holds again: {', '.join(twice)}")
        found |= renamed
    config = _config(settings, found, folder)
    for name in [name for name in found if name.endswith("inv_freq")]:
        hf_decoder.check_frequencies(found.pop(name), config, f"{folder}: {name}")
    return {"kind": "student", "config": config}, found


def read_tokenizer(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and weights of the tokenizer inside.

    Its architecture is that of an open-muse config.json beside the stages, where there is one.
    Otherwise it is read from the shapes, for pictures of the reference's 256 pixels: their size
    cannot be known from the weights.

    Raises:
        UserError: a file cannot be read, or the tokenizer is not inside, or not whole.
    """
    state = _stage(folder / _files(folder)[0])
    found = {k.removeprefix(TOKENIZER): v for k, v in state.items() if k.startswith(TOKENIZER)}
    if "encoder.conv_in.weight" not in found:
        what = "only the codes of a tokenizer" if found else "no tokenizer"
        raise UserError(f"{folder} holds {what}: set tokenizer=PATH to another")
    if (folder / "config.json").exists():
        config = open_muse.check(read_json(folder / "config.json", "model config"), folder)
    else:
        config = open_muse.infer(found, folder)
    return {"kind": "tokenizer", "config": config}, found


def _settings(folder: Path) -> dict[str, Any]:
    """The model's part of the training config."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder} has stages of a model and no {CONFIG}: put theirs beside them")
    settings = weights.read_pickle(folder / CONFIG)
    if not isinstance(settings, dict):
        raise UserError(f"{folder}/{CONFIG} holds a {type(settings).__name__}, not a dict")
    for name in ("hidden_size", "num_layers", "num_attention_heads", "layer_norm_epsilon"):
        hf_decoder.positive(name, settings.get(name), folder / CONFIG)
    for name, only in _ONLY.items():
        if (value := settings.get(name, only)) != only:
            raise UserError(f"{folder}/{CONFIG}: {name} {value} is not supported, only {only}")
    return settings


def _files(folder: Path) -> list[str]:
    """The files of all stages in order."""
    names = {path.name for path in folder.glob("model_tp*_pp*.pt")}
    if parallel := sorted(name for name in names if not name.startswith("model_tp0_")):
        raise UserError(
            f"{folder}/{parallel[0]}: weights split by tensor parallelism are not supported: merge "
            "them with the program that wrote them"
        )
    ordered = [f"model_tp0_pp{number}.pt" for number in range(len(names))]
    if missing := sorted(set(ordered) - names):
        raise UserError(f"{folder}: stage {missing[0]} is missing beside {max(names)}")
    return ordered


def _stage(file: Path) -> dict[str, Tensor]:
    """Weights of one stage, their names without the leading ``model.``"""
    return {key.removeprefix("model."): each for key, each in weights.read_tensors(file).items()}


def _count_layers(state: dict[str, Tensor], file: str) -> int:
    """Layers of one stage. Only ``blocks.N.`` counts: the tokenizer has numbers in its names too.

    Raises:
        UserError: they are not counted from 0 without a gap.
    """
    numbers = {int(each[1]) for name in state if (each := re.match(r"blocks\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))):
        raise UserError(f"{file}: layers {sorted(numbers)} are not counted from 0 without a gap")
    return len(numbers)


def _starts(layers: list[int]) -> list[int]:
    """The number of each stage's first layer."""
    return [sum(layers[:stage]) for stage in range(len(layers))]


def _rename(state: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    """Weights of a stage under our names, without the tokenizer but for its codes."""
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith(TOKENIZER) and name != CODEBOOK:
            continue
        if layer := re.match(r"blocks\.(\d+)\.", name):
            rest = name[layer.end() :]
            for theirs, part in _LAYER.items():
                if rest.startswith(f"{theirs}."):
                    rest = part + rest.removeprefix(theirs)
            name = f"blocks.{first + int(layer[1])}.{rest}"
        ours[_NAMES.get(name, name)] = tensor
    return ours


def _config(settings: dict[str, Any], found: dict[str, Tensor], folder: Path) -> dict[str, Any]:
    """Fields of `TransformerConfig`, those that shapes tell by the shapes."""
    told = ("head.weight", "blocks.0.mlp.gate.weight")
    if missing := [name for name in told if name not in found or found[name].ndim != 2]:
        raise UserError(f"{folder}: no matrix {', '.join(missing)} (our names) in its stages")
    config = {
        "vocab_size": len(found["head.weight"]),
        "width": settings["hidden_size"],
        "layers": settings["num_layers"],
        "heads": settings["num_attention_heads"],
        "mlp_width": len(found["blocks.0.mlp.gate.weight"]),
        "rope_base": 10000.0,
        "norm_eps": settings["layer_norm_epsilon"],
        "embedding": Embedding.own.value,
    }
    if (codes := found.get("embed.codebook")) is not None and codes.ndim == 2:
        config |= {"embedding": Embedding.codebook.value, "codebook_dim": codes.shape[-1]}
    return config
