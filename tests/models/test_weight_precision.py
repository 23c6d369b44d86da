"""Weights in int8 stay close to the original ones, in half the memory of bfloat16."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from delvm.errors import UserError
from delvm.interop.load import load_student
from delvm.models.precision import has_native_bf16
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.weight_precision import Int8Linear, quantize_int8, set_weight_precision


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


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_shipped_student_loads_in_each_precision(precision):
    student = load_student("shapes", precision=precision)
    wide = torch.bfloat16 if precision == "int8" and has_native_bf16("cpu") else torch.float32
    expected = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": wide}[precision]
    assert student.head.weight.dtype is expected
    ids = torch.randint(student.vocab_size, (2, 40))
    with torch.inference_mode():
        found, exact = student(ids).float(), load_student("shapes")(ids)
    assert (found.argmax(-1) == exact.argmax(-1)).float().mean() > 0.8
    assert torch.equal(found, exact) == (precision == "fp32")


def test_student_without_blocks_is_refused():
    with pytest.raises(UserError, match="int8 needs a student with blocks, not Linear"):
        set_weight_precision(nn.Linear(2, 2), "int8")
