"""What the decoders of transformers have in common: a config.json, and names of weights.

InternLM's and Llama's differ in a few keys of the config alone; `internlm_hf` and `llama` know
those.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delvm.errors import UserError
from delvm.models.transformer import Embedding, Transformer

# Keys of a config.json -> of `TransformerConfig`. All of them must be there.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "width",
    "num_hidden_layers": "layers",
    "num_attention_heads": "heads",
    "intermediate_size": "mlp_width",
    "max_position_embeddings": "context",
    "rms_norm_eps": "norm_eps",
}
# Keys that would change what is computed -> what `Transformer` computes, and what absence means.
_ONLY = {"hidden_act": "silu", "mlp_bias": False, "partial_rotary_factor": 1.0, "rotary": None}
_LAYER = {
    "norm1.weight": "input_layernorm.weight",
    "norm2.weight": "post_attention_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention.out.bias": "self_attn.o_proj.bias",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.down.weight": "mlp.down_proj.weight",
}
_ENDS = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "head.weight": "lm_head.weight",
}
_FREQUENCIES = "rotary_emb.inv_freq"


# ---------------------------------------------------------------- config.json


def read_config(config: dict[str, Any], bias: str, place: Path) -> dict[str, Any]:
    """Fields of `TransformerConfig` that a config.json decides.

    Args:
        config: the config.json.
        bias: its key for the bias of q, k, v and the attention's output.
        place: it came from.

    Raises:
        UserError: a key is missing, or says what `Transformer` cannot be.
    """
    if missing := [name for name in _SIZES if name not in config]:
        raise UserError(f"{place}: no {', '.join(missing)}")
    for name, only in _ONLY.items():
        if (value := config.get(name, only)) != only:
            raise UserError(f"{place}: {name} {value} is not supported, only {only}")
    ours = {name: positive(theirs, config[theirs], place) for theirs, name in _SIZES.items()}
    width, heads = ours["width"], ours["heads"]
    if (groups := config.get("num_key_value_heads") or heads) != heads:
        raise UserError(
            f"{place}: num_key_value_heads {groups} != num_attention_heads {heads}: keys and "
            "values that heads share are not supported"
        )
    if (each := config.get("head_dim") or width / heads) != width / heads:
        raise UserError(f"{place}: head_dim {each} x {heads} heads != hidden_size {width}")
    return ours | {
        "rope_base": _rope_base(config, place),
        "bias": config.get(bias, False) is True,
        "embedding": Embedding.own.value,
    }


def positive(name: str, value: Any, place: Path) -> Any:
    """A value, if it is a number above 0, and whole but where it is an epsilon or a base.

    Raises:
        UserError: it is not.
    """
    real = name.endswith(("eps", "epsilon", "theta"))
    kinds = (int, float) if real else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds) or not value > 0:
        raise UserError(f"{place}: {name} {value!r} is no {'' if real else 'whole '}number above 0")
    return value


def _rope_base(config: dict[str, Any], place: Path) -> float:
    """The base of the rotary angles, at the top or, as transformers 5 has it, in a part."""
    parts = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = parts.get("rope_type", parts.get("type")) if isinstance(parts, dict) else parts
    if kind not in (None, "default"):
        raise UserError(f"{place}: rope_type {kind!r} is not supported, only default")
    base = parts.get("rope_theta", config.get("rope_theta", 10000.0))
    return float(positive("rope_theta", base, place))


def write_config(student: Transformer, architecture: str, dtype: torch.dtype) -> dict[str, Any]:
    """What both config.json say of a student."""
    c = student.config
    values = {"mlp_width": c.inner}
    ours = {theirs: values.get(name, getattr(c, name)) for theirs, name in _SIZES.items()}
    return ours | {
        "architectures": [architecture],
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": student.space.bos,
        "eos_token_id": student.space.eos,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


# ---------------------------------------------------------------- names of weights


def read_weights(
    found: dict[str, Tensor], config: dict[str, Any], place: Path, tied: bool = False
) -> dict[str, Tensor]:
    """Weights under our names; a name that is not known keeps its own.

    Args:
        found: theirs.
        config: fields of `TransformerConfig`.
        place: they came from.
        tied: whether the head is the embedding.

    Raises:
        UserError: rotary frequencies that were stored are not those of the config.
    """
    found = dict(found)
    for name in [name for name in found if name.endswith(_FREQUENCIES)]:
        check_frequencies(found.pop(name), config, f"{place}: {name}")
    if tied and "model.embed_tokens.weight" in found:
        found["lm_head.weight"] = found["model.embed_tokens.weight"]
    ours = {name: found.pop(theirs) for name, theirs in _ENDS.items() if theirs in found}
    names = {theirs: name for name, theirs in _LAYER.items()}
    for name in list(found):
        if (layer := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)) is None:
            continue
        if layer[2] in names:
            ours[f"blocks.{layer[1]}.{names[layer[2]]}"] = found.pop(name)
        elif q := re.fullmatch(r"self_attn\.q_proj\.(weight|bias)", layer[2]):
            three = [name.replace("q_proj", f"{x}_proj") for x in "qkv"]
            shapes = {found[each].shape if each in found else None for each in three}
            if len(shapes) == 1 and not shapes & {None, ()}:
                qkv = torch.cat([found.pop(each) for each in three])
                ours[f"blocks.{layer[1]}.attention.qkv.{q[1]}"] = qkv
    return ours | found


def frequencies(width: int, base: float) -> Tensor:
    """The rotary angles a position, (D / 2,), of heads of a width."""
    return base ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)


def check_frequencies(stored: Tensor, config: dict[str, Any], what: str) -> None:
    """Refuse stored angles that are not those of a config, by its width, heads and rope_base.

    Raises:
        UserError: they are not.
    """
    width, base = config["width"] // config["heads"], config["rope_base"]
    wanted = frequencies(width, base)
    # In half precision they are a few thousandths off.
    if stored.shape != wanted.shape or not torch.allclose(stored.float(), wanted, rtol=1e-2):
        raise UserError(f"{what} are not the angles of heads of {width} with base {base:g}")


def write_weights(student: Transformer, dtype: torch.dtype) -> dict[str, Tensor]:
    """A student's weights under their names; a codebook is multiplied out."""
    state = {k: v.detach().cpu() for k, v in student.state_dict().items() if k[:6] != "embed."}
    ids = torch.arange(student.config.vocab_size, device=student.head.weight.device)
    with torch.no_grad():
        state["embed.weight"] = student.embed(ids).cpu()
    theirs = {name: state[ours] for ours, name in _ENDS.items()}
    for layer in range(student.config.layers):
        ours, name = f"blocks.{layer}.", f"model.layers.{layer}."
        theirs |= {name + b: state[ours + a] for a, b in _LAYER.items() if ours + a in state}
        for part in ("weight", "bias"):
            if (qkv := state.get(f"{ours}attention.qkv.{part}")) is not None:
                for x, each in zip("qkv", qkv.chunk(3), strict=True):
                    theirs[f"{name}self_attn.{x}_proj.{part}"] = each
    return {name: tensor.to(dtype) for name, tensor in theirs.items()}
