"""What the decoders in the format of transformers share: config.json and the names of weights.

InternLM's and Llama's differ only in a few config keys, which `internlm_hf` and `llama` handle.
DeLVM's exports write what it knows of the student's data (token space, fingerprint of the
tokenizer) under the key ``delvm`` of config.json, which transformers preserves.
Not a format by itself.
"""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delvm import legacy
from delvm.errors import UserError
from delvm.models.transformer import InputEmbedding, Transformer

# Keys of config.json -> fields of `TransformerConfig`. All of them are required.
_CONFIG_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "ffn_dim",
    "max_position_embeddings": "max_seq_len",
    "rms_norm_eps": "norm_eps",
}
# Keys that change what is computed -> the only value that `Transformer` supports, which is also
# the meaning of a missing key.
_SUPPORTED_ONLY = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "rotary": None,
}
# Names of `Transformer` -> names of transformers: in each block, and outside of the blocks.
_BLOCK_NAMES = {
    "norm1.weight": "input_layernorm.weight",
    "norm2.weight": "post_attention_layernorm.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "attention.out.bias": "self_attn.o_proj.bias",
    "norm1.bias": "input_layernorm.bias",
    "norm2.bias": "post_attention_layernorm.bias",
    "mlp.gate.weight": "mlp.gate_proj.weight",
    "mlp.gate.bias": "mlp.gate_proj.bias",
    "mlp.up.weight": "mlp.up_proj.weight",
    "mlp.up.bias": "mlp.up_proj.bias",
    "mlp.down.weight": "mlp.down_proj.weight",
    "mlp.down.bias": "mlp.down_proj.bias",
}
_TOP_NAMES = {
    "embed.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "norm.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
_INV_FREQ = "rotary_emb.inv_freq"


# ---------------------------------------------------------------- config.json


def import_config(config: dict[str, Any], bias_key: str, path: Path) -> dict[str, Any]:
    """Fields of `TransformerConfig` from a config.json.

    Args:
        config: the config.json.
        bias_key: its key for the bias of q, k, v and the attention's output.
        path: of the config.json, for messages.

    Raises:
        UserError: a key is missing, or has a value that `Transformer` does not support.
    """
    if missing := [name for name in _CONFIG_KEYS if name not in config]:
        raise UserError(f"{path}: missing keys: {', '.join(missing)}")
    for name, only in _SUPPORTED_ONLY.items():
        if (value := config.get(name, only)) != only:
            raise UserError(f"{path}: {name} {value} is not supported, only {only}")
    values = {ours: require_positive(hf, config[hf], path) for hf, ours in _CONFIG_KEYS.items()}
    dim, n_heads = values["dim"], values["n_heads"]
    if (kv_heads := config.get("num_key_value_heads") or n_heads) != n_heads:
        raise UserError(
            f"{path}: num_key_value_heads {kv_heads} != num_attention_heads {n_heads}: "
            "grouped-query attention is not supported"
        )
    if (head_dim := config.get("head_dim") or dim / n_heads) != dim / n_heads:
        raise UserError(f"{path}: head_dim {head_dim} x {n_heads} heads != hidden_size {dim}")
    return values | {
        "rope_base": _rope_base(config, path),
        "bias": config.get(bias_key, False) is True,
        "embedding": InputEmbedding.learned.value,
    }


def recorded_metadata(config: dict[str, Any]) -> dict[str, Any]:
    """What a config.json states under ``delvm`` of the student's data; {} if it does not."""
    own = config.get("delvm")
    return legacy.upgrade_model_metadata(own) if isinstance(own, dict) else {}


def require_positive(name: str, value: Any, path: Path) -> Any:
    """The value, if it is a positive integer, or a positive number for an epsilon or a base.

    Raises:
        UserError: it is not.
    """
    real = name.endswith(("eps", "epsilon", "theta"))
    types = (int, float) if real else (int,)
    if isinstance(value, bool) or not isinstance(value, types) or not value > 0:
        kind = "number" if real else "integer"
        raise UserError(f"{path}: {name} {value!r} is not a positive {kind}")
    return value


def _rope_base(config: dict[str, Any], path: Path) -> float:
    """The base of the rotary angles: a key of config.json, or nested since transformers 5."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope_type = rope.get("rope_type", rope.get("type")) if isinstance(rope, dict) else rope
    if rope_type not in (None, "default"):
        raise UserError(f"{path}: rope_type {rope_type!r} is not supported, only default")
    base = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    return float(require_positive("rope_theta", base, path))


def export_config(student: Transformer, architecture: str, dtype: torch.dtype) -> dict[str, Any]:
    """The keys that both formats write to config.json.

    Raises:
        UserError: the student normalizes queries and keys, which neither format does.
    """
    cfg = student.config
    if cfg.qk_norm:
        raise UserError(
            f"qk_norm true (student) != false ({architecture}): no format of transformers that is "
            "written here has it; train with student.net.qk_norm=false to export"
        )
    values = {"ffn_dim": cfg.resolved_ffn_dim}
    sizes = {hf: values.get(ours, getattr(cfg, ours)) for hf, ours in _CONFIG_KEYS.items()}
    return sizes | {
        "architectures": [architecture],
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": student.token_space.bos,
        "eos_token_id": student.token_space.eos,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "delvm": {
            "space": asdict(student.token_space),
            "tokenizer_fingerprint": student.tokenizer_fingerprint,
        }
        | ({"resize": student.resize} if student.resize else {}),
    }


# ---------------------------------------------------------------- weights


def import_weights(
    state: dict[str, Tensor], config: dict[str, Any], path: Path, tied: bool = False
) -> dict[str, Tensor]:
    """A state dict under the names of `Transformer`; unknown names are kept.

    Args:
        state: as it was read.
        config: fields of `TransformerConfig`.
        path: of the folder, for messages.
        tied: whether the head shares the weights of the embedding.

    Raises:
        UserError: stored rotary frequencies do not match the config.
    """
    state = dict(state)
    for name in [name for name in state if name.endswith(_INV_FREQ)]:
        check_inv_freq(state.pop(name), config, f"{path}: {name}")
    if tied and "model.embed_tokens.weight" in state:
        state["lm_head.weight"] = state["model.embed_tokens.weight"]
    renamed = {ours: state.pop(hf) for ours, hf in _TOP_NAMES.items() if hf in state}
    names = {hf: ours for ours, hf in _BLOCK_NAMES.items()}
    for name in list(state):
        if (layer := re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)) is None:
            continue
        if layer[2] in names:
            renamed[f"blocks.{layer[1]}.{names[layer[2]]}"] = state.pop(name)
        elif q := re.fullmatch(r"self_attn\.q_proj\.(weight|bias)", layer[2]):
            qkv_names = [name.replace("q_proj", f"{x}_proj") for x in "qkv"]
            shapes = {state[each].shape if each in state else None for each in qkv_names}
            if len(shapes) == 1 and not shapes & {None, ()}:
                qkv = torch.cat([state.pop(each) for each in qkv_names])
                renamed[f"blocks.{layer[1]}.attention.qkv.{q[1]}"] = qkv
    return renamed | state


def inv_freq(head_dim: int, base: float) -> Tensor:
    """Inverse frequencies of the rotary angles, (head_dim / 2,): radians per position."""
    return base ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def check_inv_freq(stored: Tensor, config: dict[str, Any], what: str) -> None:
    """Refuse stored inverse frequencies that differ from those of a config.

    Args:
        stored: in any precision.
        config: fields of `TransformerConfig`.
        what: where they are stored, for the message.

    Raises:
        UserError: they differ.
    """
    head_dim, base = config["dim"] // config["n_heads"], config["rope_base"]
    expected = inv_freq(head_dim, base)
    # In half precision they are off by a few thousandths.
    if stored.shape != expected.shape or not torch.allclose(stored.float(), expected, rtol=1e-2):
        raise UserError(f"{what} does not match head_dim {head_dim} and rope base {base:g}")


def export_weights(student: Transformer, dtype: torch.dtype) -> dict[str, Tensor]:
    """A student's state dict under the names of transformers.

    An embedding that projects the tokenizer's codebook is exported as the product of the two.
    """
    state = {k: v.detach().cpu() for k, v in student.state_dict().items() if k[:6] != "embed."}
    ids = torch.arange(student.config.vocab_size, device=student.head.weight.device)
    with torch.no_grad():
        state["embed.weight"] = student.embed(ids).cpu()
    renamed = {hf: state[ours] for ours, hf in _TOP_NAMES.items() if ours in state}
    for layer in range(student.config.n_layers):
        block, prefix = f"blocks.{layer}.", f"model.layers.{layer}."
        renamed |= {
            prefix + hf: state[block + ours]
            for ours, hf in _BLOCK_NAMES.items()
            if block + ours in state
        }
        for part in ("weight", "bias"):
            if (qkv := state.get(f"{block}attention.qkv.{part}")) is not None:
                for x, each in zip("qkv", qkv.chunk(3), strict=True):
                    renamed[f"{prefix}self_attn.{x}_proj.{part}"] = each
    return {name: tensor.to(dtype) for name, tensor in renamed.items()}
