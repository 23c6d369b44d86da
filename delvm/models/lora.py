"""Low-rank adapters: a pretrained student is trained by few parameters (LoRA, arXiv 2106.09685).

The weight W (out, in) of a linear layer stays as it is; what is trained is the product B A of two
small matrices that is added to it:

    y = x W^T + (alpha / rank) x A^T B^T        A (rank, in), B (out, rank), B = 0 at first

A state dict has W under its plain name, and next to it ``lora_a``, ``lora_b`` and ``lora_scale``.
`merge_adapters` turns it into one of the plain student.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delvm.errors import UserError

_PARTS = ("lora_a", "lora_b", "lora_scale")


class LoRALinear(nn.Module):
    """A frozen linear layer (in -> out) and its adapter."""

    lora_scale: Tensor

    def __init__(
        self, linear: nn.Linear, rank: int, alpha: float, generator: torch.Generator
    ) -> None:
        """Take over the weight and bias of a linear layer."""
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        a = torch.empty(rank, linear.in_features)
        a.uniform_(-(linear.in_features**-0.5), linear.in_features**-0.5, generator=generator)
        device = linear.weight.device
        self.lora_a = nn.Parameter(a.to(device))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, device=device))
        self.register_buffer("lora_scale", torch.tensor(alpha / rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., in) -> (..., out)."""
        y = F.linear(x, self.weight, self.bias)
        return y + F.linear(F.linear(x, self.lora_a), self.lora_b) * self.lora_scale.to(y.dtype)


class LoRA:
    """Which layers of a student get adapters, and of which size."""

    def __init__(self, rank: int = 8, alpha: float = 16.0, layers: list[str] | None = None) -> None:
        """
        Args:
            rank: of the product that is added to each weight.
            alpha: the product is scaled by alpha / rank, so that another rank needs no other
                learning rate.
            layers: names of linear layers within the blocks; None = all.
        """
        self.rank, self.alpha, self.layers = rank, alpha, layers

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        errors = [] if self.rank >= 1 else [f"rank={self.rank} is below 1: set it to 8"]
        if not self.alpha > 0:
            errors.append(f"alpha={self.alpha} is not above 0: set it to 16")
        if self.layers == []:
            errors.append("layers=[] names no layer: set layers=null for all")
        return errors

    def attach(self, student: Any) -> None:
        """Freeze a student and give its blocks adapters, in place; one that has them stays.

        Their initial weights depend on torch's seed alone.

        Raises:
            UserError: a layer is not there.
        """
        blocks = getattr(student, "blocks", None)
        modules = list(blocks.modules()) if isinstance(blocks, nn.ModuleList) else []
        if any(isinstance(each, LoRALinear) for each in modules):
            return
        linears = [
            (module, name, child)
            for module in modules
            for name, child in module.named_children()
            if type(child) is nn.Linear
        ]
        known = list(dict.fromkeys(name for _, name, _ in linears))
        names = known if self.layers is None else self.layers
        missing = [name for name in names if name not in known]
        if missing or not known:
            raise UserError(
                f"module.adapter.layers={missing}: the blocks of {type(student).__name__} have the "
                f"linear layers {known}: set module.adapter.layers=null or module/adapter=none"
            )
        student.requires_grad_(False)
        generator = torch.Generator().manual_seed(torch.initial_seed())
        for module, name, linear in linears:
            if name in names:
                setattr(module, name, LoRALinear(linear, self.rank, self.alpha, generator))


def merge_adapters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with each adapter added to its weight; others are returned as they are.

    Raises:
        UserError: the parts of an adapter do not fit together.
    """
    merged = {name: each for name, each in state.items() if not name.endswith(_PARTS)}
    layers = dict.fromkeys(name.rpartition(".")[0] for name in state.keys() - merged.keys())
    for layer in layers:
        weight = merged.get(f"{layer}.weight")
        a, b, scale = (state.get(f"{layer}.{part}") for part in _PARTS)
        found = [tuple(x.shape) if isinstance(x, Tensor) else None for x in (weight, a, b, scale)]
        if weight is None or a is None or b is None or scale is None or not _fit(*found):
            raise UserError(f"the adapter of {layer} does not fit its weight: shapes {found}")
        added = (b.float() @ a.float()) * scale
        merged[f"{layer}.weight"] = (weight.float() + added).to(weight.dtype)
    return merged


def _fit(
    weight: tuple[int, ...] | None,
    a: tuple[int, ...] | None,
    b: tuple[int, ...] | None,
    scale: tuple[int, ...] | None,
) -> bool:
    """Whether these are the shapes (out, in), (rank, in), (out, rank) and ()."""
    if weight is None or a is None or b is None or scale != ():
        return False
    return len(a) == len(b) == 2 and a[0] == b[1] and weight == (b[0], a[1])
