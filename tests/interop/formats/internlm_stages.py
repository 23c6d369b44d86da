"""A training checkpoint of DeLVM's engine, assembled from tests/data/golden.

The weights are those of the golden InternLM folder, the tokenizer is the golden VQGAN; only the
projection between them is stored separately.
"""

import json
import shutil
from pathlib import Path

import torch
from torch import Tensor

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
LAYERS = 4


def stages(sizes: list[int], tokenizer: bool = True) -> list[dict[str, Tensor]]:
    """Weights of each pipeline stage, with ``sizes`` layers in each."""
    theirs = torch.load(GOLDEN / "internlm_hf" / "pytorch_model.bin", weights_only=True)
    codes = torch.load(GOLDEN / "muse_vqgan" / "pytorch_model.bin", weights_only=True)
    first = torch.load(GOLDEN / "internlm_raw" / "embed_proj.pt", weights_only=True)
    for name, tensor in codes.items():
        if tokenizer or name == "quantize.embedding.weight":
            first[f"model.embedding.vq_model.{name}"] = tensor
    built: list[dict[str, Tensor]] = [{} for _ in sizes]
    built[0] |= first
    layer = 0
    for stage, size in zip(built, sizes, strict=True):
        for number in range(size):
            stage |= _block(theirs, layer, f"model.blocks.{number}.")
            layer += 1
    built[-1] |= {
        "model.norm.weight": theirs["model.norm.weight"],
        "model.head.weight": theirs["lm_head.weight"],
    }
    return built


def _block(theirs: dict[str, Tensor], layer: int, name: str) -> dict[str, Tensor]:
    at = f"model.layers.{layer}."
    ours = {
        f"{name}mixer.rotary_emb.inv_freq": theirs[f"{at}self_attn.rotary_emb.inv_freq"],
        f"{name}mlp.w1.weight": theirs[f"{at}mlp.gate_proj.weight"],
        f"{name}mlp.w2.weight": theirs[f"{at}mlp.up_proj.weight"],
        f"{name}mlp.w3.weight": theirs[f"{at}mlp.down_proj.weight"],
        f"{name}norm1.weight": theirs[f"{at}input_layernorm.weight"],
        f"{name}norm2.weight": theirs[f"{at}post_attention_layernorm.weight"],
    }
    for part in ("weight", "bias"):
        qkv = [theirs[f"{at}self_attn.{x}_proj.{part}"] for x in "qkv"]
        ours[f"{name}mixer.Wqkv.{part}"] = torch.cat(qkv)
        ours[f"{name}mixer.out_proj.{part}"] = theirs[f"{at}self_attn.o_proj.{part}"]
    return ours


def write(folder: Path, built: list[dict[str, Tensor]], **settings: object) -> Path:
    """The folder as the engine writes it: config, stages, and the files next to them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = torch.load(GOLDEN / "internlm_raw" / "model_config.pt", weights_only=True)
    torch.save(config | settings, folder / "model_config.pt")
    for number, stage in enumerate(built):
        torch.save(stage, folder / f"model_tp0_pp{number}.pt")
        (folder / f"topo_tp0_pp{number}.json").write_text(json.dumps({}))
        torch.save({"step": 1}, folder / f"optimizer_tp0_pp{number}_zo0.pt")
    return folder


def with_config(folder: Path) -> Path:
    """The same with the tokenizer's config.json."""
    shutil.copy(GOLDEN / "muse_vqgan" / "config.json", folder)
    return folder
