"""What is between products: rotation bit by bit as PyTorch's, norm and gate rounded once."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import delvm.models.rope
from delvm.models.cpu.elementwise import gate_, has_kernels
from delvm.models.mlp import SwiGLU
from delvm.models.norm import RMSNorm
from delvm.models.rope import apply_rotary_emb, precompute_rope

pytestmark = pytest.mark.skipif(
    not has_kernels(torch.ones(1, dtype=torch.bfloat16)),
    reason="needs a CPU with bfloat16 and a compiler",
)
B, T, H, D = 2, 37, 3, 20


def rotated(qkv: Tensor, rope: Tensor) -> tuple[Tensor, Tensor]:
    """Keys of a fused projection (B, T, 3 H D), rotated; and the gradient of the projection."""
    qkv = qkv.clone().requires_grad_()
    result = apply_rotary_emb(qkv.view(B, T, 3, H, D).unbind(2)[1], rope)
    result.backward(torch.linspace(-1, 1, result.numel()).view_as(result).to(result.dtype))
    assert qkv.grad is not None
    return result.detach(), qkv.grad


@pytest.mark.parametrize("kind", ["range", "per row"])
def test_equals_pytorch_bit_by_bit(kind, monkeypatch):
    torch.manual_seed(0)
    qkv = torch.randn(B, T, 3 * H * D, dtype=torch.bfloat16)
    index: Any = slice(7, 7 + T) if kind == "range" else torch.randint(90, (B, T))
    rope = precompute_rope(90, D, 10_000.0)[:, index].unsqueeze(-2)
    found = rotated(qkv, rope)
    monkeypatch.setattr(delvm.models.rope, "has_kernels", lambda x: False)
    for one, other in zip(found, rotated(qkv, rope), strict=True):
        assert torch.equal(one, other) and one.abs().sum() > 0


def test_angles_of_other_sizes_are_left_to_pytorch():
    x, rope = torch.randn(B, T, H, D).bfloat16(), precompute_rope(90, D, 10_000.0).unsqueeze(-2)
    index = torch.randint(90, (1, T))
    one, all_rows = (rope[:, each] for each in (index, index.expand(B, T)))
    assert torch.equal(apply_rotary_emb(x, one), apply_rotary_emb(x, all_rows))
    with pytest.raises(RuntimeError, match="size"):
        apply_rotary_emb(x, rope[:, 60 : 60 + T])


def test_second_derivatives():
    rope = precompute_rope(T, D, 10_000.0).unsqueeze(-2)
    x = torch.randn(B, T, H, D, dtype=torch.bfloat16, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        apply_rotary_emb(x, rope).float().pow(2).sum() / 2, x, create_graph=True
    )
    (second,) = torch.autograd.grad(gradient.sum(), x)  # of the squared length, which is kept
    assert torch.allclose(second.float(), torch.ones(()), atol=0.02)


def test_calls_c_plus_plus_in_bfloat16_alone(monkeypatch):
    calls: list[Tensor] = []
    monkeypatch.setattr("delvm.models.rope.rotate", lambda x, rope: calls.append(x) or x)
    rope = precompute_rope(T, D, 10_000.0).unsqueeze(-2)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        apply_rotary_emb(torch.ones(B, T, H, D, dtype=dtype), rope)
    assert [x.dtype for x in calls] == [torch.bfloat16]


def test_norm_is_that_of_float32_rounded_once():
    torch.manual_seed(0)
    norm, x = RMSNorm(64, eps=1e-5), torch.randn(300, 96)[:, :64].bfloat16()
    torch.nn.init.normal_(norm.weight, 1, 0.2)
    with torch.no_grad():
        found = norm.bfloat16()(x)
        expected = norm.float()(x.float()).bfloat16()
    is_other = found != expected  # where sums in another order are rounded to the other side
    assert is_other.float().mean() < 1e-3 and torch.allclose(found, expected, rtol=0.01)


@pytest.mark.parametrize("count", [1, 63, 40_000])
def test_gate_is_that_of_float32_rounded_once(count):
    torch.manual_seed(0)
    gate, up = 20 * torch.randn(count).bfloat16(), torch.randn(count).bfloat16()
    expected = (F.silu(gate.float()) * up.float()).bfloat16()
    found = gate_(gate.clone(), up)
    assert (found != expected).float().mean() < 1e-3
    assert torch.allclose(found, expected, rtol=0.01, atol=1e-30)


def test_student_without_gradient_calls_them(monkeypatch):
    mlp, norm = SwiGLU(64, 128).bfloat16(), RMSNorm(64, eps=1e-5).bfloat16()
    calls: list[str] = []
    monkeypatch.setattr("delvm.models.mlp.gate_", lambda x, y: calls.append("gate") or x)
    monkeypatch.setattr("delvm.models.norm.rms_norm", lambda x, *_: calls.append("norm") or x)
    x = torch.randn(3, 64, dtype=torch.bfloat16)
    with torch.no_grad():
        mlp(norm(x))
    assert calls == ["norm", "gate"]
    mlp(norm(x)).sum().backward()
    parameters = (*norm.parameters(), *mlp.parameters())
    assert len(calls) == 2 and all(each.grad is not None for each in parameters)


def test_hooks_see_the_gate_itself():
    torch.manual_seed(0)
    mlp, x, seen = SwiGLU(64, 128).bfloat16(), torch.randn(3, 64, dtype=torch.bfloat16), []
    mlp.gate.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        mlp(x)
        assert torch.equal(seen[0], F.linear(x, mlp.gate.weight))


def test_weight_of_another_width_is_left_to_pytorch():
    with torch.no_grad(), pytest.raises(RuntimeError, match="normalized_shape"):
        RMSNorm(32, eps=1e-5).bfloat16()(torch.ones(2, 64, dtype=torch.bfloat16))
