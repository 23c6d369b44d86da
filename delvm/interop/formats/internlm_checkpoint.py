"""Training checkpoints of InternLM, as DeLVM's engine writes them, which include the tokenizer.

    model_config.pt       the model section of the training config
    model_tp0_ppK.pt      weights of pipeline stage K; layers are numbered from 0 in each stage

The first stage has the input embedding, which in DeLVM is a complete VQGAN of open-muse
(``embedding.vq_model``) and a projection; the last one has the norm and the head. The optimizer
files next to them are not read. Neither the context length (2,048 in DeLVM's recipe) nor the
tokenizer's image size is recorded.
"""

import re
from itertools import accumulate
from pathlib import Path
from typing import Any

from torch import Tensor

from delvm.errors import UserError
from delvm.interop.formats import hf_decoder, open_muse
from delvm.interop.model_source import ModelData, ModelSource
from delvm.interop.weight_files import read_pickle, read_tensors, strip_wrappers
from delvm.models.mlp import MLPKind
from delvm.models.norm import NormKind
from delvm.models.transformer import InputEmbedding

CONFIG_FILE = "model_config.pt"
TOKENIZER = "embedding.vq_model."
CODEBOOK = f"{TOKENIZER}quantize.embedding.weight"
# Keys that change what is computed -> the only value that `Transformer` supports.
_SUPPORTED_ONLY = {"use_swiglu": True, "is_reward": False, "num_chunks": 1}
_NORMS = {"rmsnorm": NormKind.rmsnorm, "layernorm": NormKind.layernorm}
# Names of InternLM -> names of `Transformer`: outside of the blocks, and in each block.
_TOP_NAMES = {
    "embedding.weight": "embed.weight",
    "embedding.word_embeddings.weight": "embed.weight",
    "embedding.embed_proj.weight": "embed.project.weight",
    CODEBOOK: "embed.codebook",
}
_BLOCK_NAMES = {
    "mixer.Wqkv": "attention.qkv",
    "mixer.out_proj": "attention.out",
    "mlp.w1": "mlp.gate",
    "mlp.w2": "mlp.up",
    "mlp.w3": "mlp.down",
    "mlp.fc1": "mlp.up",  # of its "ViT", which has use_swiglu in its config all the same
    "mlp.fc2": "mlp.down",
}


def matches(source: ModelSource) -> bool:
    """Whether a folder has the files of pipeline stages."""
    return any(source.path.glob("model_tp*_pp*.pt"))


def read(source: ModelSource, kind: str) -> ModelData:
    """Metadata and weights of the student, or of the tokenizer in its embedding.

    Raises:
        UserError: a file is missing or cannot be read, the architecture is not supported, or there
            is no complete tokenizer.
    """
    return _read_student(source.path) if kind == "student" else _read_tokenizer(source)


def _read_student(folder: Path) -> ModelData:
    """Metadata and weights of the student; codebook and projection stay separate."""
    model_config = _model_config(folder)
    stages = {file: _load_stage(folder / file) for file in _stage_files(folder)}
    layers = [_count_layers(state, file) for file, state in stages.items()]
    if sum(layers) != model_config["num_layers"]:
        raise UserError(
            f"{folder}: num_layers {model_config['num_layers']} ({CONFIG_FILE}) != "
            f"{' + '.join(map(str, layers))} layers in {', '.join(stages)}"
        )
    state: dict[str, Tensor] = {}
    for offset, (file, stage) in zip(_layer_offsets(layers), stages.items(), strict=True):
        renamed = _rename(stage, offset)
        if repeated := sorted(state.keys() & renamed.keys()):
            raise UserError(f"{folder}/{file} repeats weights: {', '.join(repeated)}")
        state |= renamed
    config = _import_config(model_config, state, folder)
    for name in [name for name in state if name.endswith("inv_freq")]:
        hf_decoder.check_inv_freq(state.pop(name), config, f"{folder}: {name}")
    return {"kind": "student", "config": config}, state


def _read_tokenizer(source: ModelSource) -> ModelData:
    """Metadata and weights of the tokenizer.

    The architecture is read from a config.json of open-muse next to the stages, if there is one.
    Otherwise it is inferred from the shapes, for DeLVM's images of 256 pixels: the weights do not
    determine the image size.
    """
    folder = source.path
    stage = _load_stage(folder / _stage_files(folder)[0])
    state = {k.removeprefix(TOKENIZER): v for k, v in stage.items() if k.startswith(TOKENIZER)}
    if "encoder.conv_in.weight" not in state:
        what = "only the codebook of a tokenizer" if state else "no tokenizer"
        raise UserError(f"{folder} holds {what}: set tokenizer=PATH to another")
    if source.config:
        config = open_muse.import_config(source.config, folder)
    else:
        config = open_muse.infer_config(state, folder)
    return {"kind": "tokenizer", "config": config}, state


def _model_config(folder: Path) -> dict[str, Any]:
    """The model section of the training config."""
    file = folder / CONFIG_FILE
    if not file.is_file():
        raise UserError(f"{file} is missing next to the stages: copy it from the training run")
    config = read_pickle(file)
    if not isinstance(config, dict):
        raise UserError(f"{file} holds a {type(config).__name__}, not a dict")
    for name in ("hidden_size", "num_layers", "num_attention_heads", "layer_norm_epsilon"):
        hf_decoder.require_positive(name, config.get(name), file)
    for name, only in _SUPPORTED_ONLY.items():
        if (value := config.get(name, only)) != only:
            raise UserError(f"{file}: {name} {value} is not supported, only {only}")
    if (norm := config.get("norm_type", "rmsnorm")) not in _NORMS:
        raise UserError(f"{file}: norm_type {norm} is not supported, only {' and '.join(_NORMS)}")
    return config


def _stage_files(folder: Path) -> list[str]:
    """The names of the files of all stages, in order."""
    names = {path.name for path in folder.glob("model_tp*_pp*.pt")}
    if parallel := sorted(name for name in names if not name.startswith("model_tp0_")):
        raise UserError(
            f"{folder}/{parallel[0]}: weights split by tensor parallelism are not supported: merge "
            "them with the program that wrote them"
        )
    ordered = [f"model_tp0_pp{number}.pt" for number in range(len(names))]
    if missing := sorted(set(ordered) - names):
        raise UserError(f"{folder}: stage {missing[0]} is missing next to {max(names)}")
    return ordered


def _load_stage(file: Path) -> dict[str, Tensor]:
    """Weights of one stage, their names without the leading ``model.``"""
    state = strip_wrappers(read_tensors(file))
    return {key.removeprefix("model."): each for key, each in state.items()}


def _count_layers(state: dict[str, Tensor], file: str) -> int:
    """Layers of one stage. Only ``blocks.N.`` counts: the tokenizer has numbered names too.

    Raises:
        UserError: the numbers do not run from 0 without a gap.
    """
    numbers = {int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    if numbers != set(range(len(numbers))):
        raise UserError(f"{file}: layers {sorted(numbers)} do not run from 0 without a gap")
    return len(numbers)


def _layer_offsets(layers: list[int]) -> list[int]:
    """The number of each stage's first layer in the complete model."""
    return list(accumulate(layers, initial=0))[:-1]


def _rename(stage: dict[str, Tensor], offset: int) -> dict[str, Tensor]:
    """A stage's weights under the names of `Transformer`; of the tokenizer only the codebook."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in stage.items():
        if name.startswith(TOKENIZER) and name != CODEBOOK:
            continue
        if layer := re.match(r"blocks\.(\d+)\.", name):
            rest = name[layer.end() :]
            for theirs, ours in _BLOCK_NAMES.items():
                if rest.startswith(f"{theirs}."):
                    rest = ours + rest.removeprefix(theirs)
            name = f"blocks.{offset + int(layer[1])}.{rest}"
        renamed[_TOP_NAMES.get(name, name)] = tensor
    return renamed


def _import_config(
    model_config: dict[str, Any], state: dict[str, Tensor], folder: Path
) -> dict[str, Any]:
    """Fields of `TransformerConfig`, from the config and from shapes where it has none."""
    swiglu = any(".mlp.gate." in name for name in state)
    required = ("head.weight", f"blocks.0.mlp.{'gate' if swiglu else 'up'}.weight")
    if missing := [name for name in required if name not in state or state[name].ndim != 2]:
        raise UserError(f"{folder}: its stages have no matrix {', '.join(missing)} (DeLVM's names)")
    config = {
        "vocab_size": len(state["head.weight"]),
        "dim": model_config["hidden_size"],
        "n_layers": model_config["num_layers"],
        "n_heads": model_config["num_attention_heads"],
        "ffn_dim": len(state[required[1]]),
        "rope_base": 10000.0,
        "norm_eps": model_config["layer_norm_epsilon"],
        "embedding": InputEmbedding.learned.value,
        "norm": _NORMS[model_config.get("norm_type", "rmsnorm")].value,
        "mlp": (MLPKind.swiglu if swiglu else MLPKind.gelu_tanh).value,
        "mlp_bias": "blocks.0.mlp.up.bias" in state,
    }
    if (codebook := state.get("embed.codebook")) is not None and codebook.ndim == 2:
        config |= {"embedding": InputEmbedding.codebook.value, "codebook_dim": codebook.shape[-1]}
    return config
