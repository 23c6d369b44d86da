"""Weights in int8 stay close to the original ones, in half the memory of bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from delvm.models.int8 import Int8Linear, quantize_int8
from delvm.models.transformer import Transformer, TransformerConfig


@pytest.mark.parametrize("bias", [False, True])
def test_each_weight_is_within_half_a_step(bias):
    torch.manual_seed(0)
    linear = nn.Linear(40, 24, bias=bias)
    linear.weight.data[3] = 0  # a row without a scale
    quantized = Int8Linear(linear)
    weight = quantized.weight.float() * quantized.scale[:, None]
    step = linear.weight.abs().amax(1, keepdim=True) / 127
    assert ((weight - linear.weight).abs() <= step / 2 + 1e-7).all()
    x = torch.randn(5, 2, 40)
    assert torch.allclose(quantized(x), F.linear(x, weight, linear.bias), atol=1e-5)
    assert quantized.to(torch.bfloat16)(x.bfloat16()).dtype is torch.bfloat16


def test_all_layers_of_the_blocks_are_quantized_and_nothing_else():
    model = Transformer(TransformerConfig(30, 64, 2, 4, codebook_dim=8), torch.randn(30, 8)).eval()
    ids = torch.randint(30, (2, 9))
    before = model(ids)
    head = model.head.weight.clone()
    quantize_int8(model)
    kinds = [type(m) for m in model.blocks.modules() if hasattr(m, "weight") and m.weight.ndim == 2]
    assert kinds == [Int8Linear] * 10 and torch.equal(model.head.weight, head)
    assert torch.allclose(model(ids), before, atol=0.02 * before.abs().max().item())
