"""Make a deeper student that computes the same: the start of the teacher that ships.

Each block is followed by a copy of itself whose two output projections are zero, so that it adds
nothing at first and learns from there (block expansion; Wu et al. 2024, "LLaMA Pro",
arXiv 2401.02415).

Run `deepen.py shapes outputs/shapes/deeper`.
"""

import re
import sys
from dataclasses import replace

import torch
from torch import Tensor

from delvm.interop.load import load_student
from delvm.interop.save import save_model
from delvm.models.transformer import Transformer

_OUTPUTS = ("attention.out.weight", "attention.out.bias", "mlp.down.weight", "mlp.down.bias")
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def deepen(student: Transformer) -> Transformer:
    """A student of twice the blocks, with the same logits."""
    config = replace(student.config, n_layers=2 * student.config.n_layers)
    deeper = Transformer(config).eval()
    state: dict[str, Tensor] = {}
    for name, value in student.state_dict().items():
        if (found := _BLOCK.fullmatch(name)) is None:
            state[name] = value
            continue
        number, rest = int(found[1]), found[2]
        state[f"blocks.{2 * number}.{rest}"] = value
        copy = torch.zeros_like(value) if rest in _OUTPUTS else value
        state[f"blocks.{2 * number + 1}.{rest}"] = copy
    deeper.load_state_dict(state)
    deeper.tokenizer_fingerprint = student.tokenizer_fingerprint
    deeper.token_space = student.token_space
    return deeper


def main(path: str, output_dir: str) -> None:
    """Write the deeper student.

    Args:
        path: of a student, or the name of one that ships.
        output_dir: replaced if it exists.
    """
    save_model(deepen(load_student(path)), output_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
