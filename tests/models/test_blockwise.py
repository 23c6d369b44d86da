"""Attention in blocks of queries against torch's, and against one document at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.models import blockwise as module
from delvm.models.attention import Backend, Documents, attend, chosen
from delvm.models.blockwise import blockwise
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.training.compiling import compile_blocks


def drawn(length: int, dtype: torch.dtype, rows: int = 2, heads: int = 3, width: int = 16):
    """Queries, keys, values and a slope of the result, each (B, T, H, D)."""
    torch.manual_seed(length)
    return [torch.randn(rows, length, heads, width).to(dtype) for _ in range(4)]


def with_gradients(attention, tensors, slope) -> list[Tensor]:
    """The result, and the gradients of q, k and v."""
    leaves = [each.clone().requires_grad_() for each in tensors]
    result = attention(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, slope)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention over whole rows."""
    return attend(q, k, v, None, 0.0)


# below a block, one block exactly, blocks that do not divide the length, the largest blocks
@pytest.mark.parametrize("length", [1, 5, 64, 130, 257, 1100])
def test_it_is_torchs_attention(length):
    *tensors, slope = drawn(length, torch.float32)
    found = with_gradients(blockwise, tensors, slope)
    wanted = with_gradients(plain, tensors, slope)
    for a, b in zip(found, wanted, strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("spread", [1, 9, 25])  # of the scores; those of trained students reach 40
def test_half_precision_is_as_near_to_the_truth_as_torchs(dtype, spread):
    q, k, v, slope = drawn(600, torch.float32, width=64)
    tensors = [each.to(dtype) for each in (q * spread**0.5, k * spread**0.5, v)]
    exact, ours, torchs = (
        with_gradients(attention, [x.to(kind) for x in tensors], slope.to(dtype).to(kind))
        for attention, kind in ((plain, torch.float32), (blockwise, dtype), (plain, dtype))
    )
    for a, b, truth in zip(ours, torchs, exact, strict=True):
        assert a.dtype == dtype
        assert (a.float() - truth).std() < 1.7 * (b.float() - truth).std()


@pytest.mark.parametrize("length", [9, 200])
def test_documents_are_each_alone(length):
    *tensors, slope = drawn(length, torch.float32)
    sizes = [[length // 3, length // 2, length - length // 3 - length // 2], [length]]
    numbers = torch.stack(
        [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in sizes]
    )
    found = with_gradients(
        lambda q, k, v: blockwise(q, k, v, Documents(numbers).starts), tensors, slope
    )
    for row, lengths in enumerate(sizes):
        begin = 0
        for size in lengths:
            part = (slice(row, row + 1), slice(begin, begin + size))
            alone = with_gradients(plain, [each[part] for each in tensors], slope[part])
            for a, b in zip(found, alone, strict=True):
                assert torch.allclose(a[part], b, atol=2e-5)
            begin += size


def test_keys_that_no_query_of_a_block_sees_are_left_out():
    starts = torch.tensor([[0] * 100 + [100] * 156, [0] * 64 + [64] * 192])
    found = [(rows.start, keys.start, keys.stop) for rows, keys in module._blocks(256, starts)]
    assert found == [(0, 0, 64), (64, 0, 128), (128, 64, 192), (192, 64, 256)]


@pytest.mark.parametrize("length", [511, 512, 1023, 2047])  # training reads all tokens but one
def test_no_block_is_a_remainder(length):
    sizes = [rows.stop - rows.start for rows, _ in module._blocks(length, None)]
    assert sum(sizes) == length and min(sizes) > 0.9 * max(sizes)


def test_of_nothing_comes_nothing():
    q = torch.zeros(0, 5, 2, 4)
    starts = torch.zeros(0, 5, dtype=torch.int64)
    assert blockwise(q, q, q, starts).shape == blockwise(q, q, q).shape == q.shape


def test_the_operators_are_sound():
    """torch's own checks: what the compiler is told of shapes, aliases and gradients holds."""
    q, k, v, _ = (x.transpose(1, 2).contiguous() for x in drawn(70, torch.float32))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    starts = torch.zeros(2, 70, dtype=torch.int64)
    torch.library.opcheck(module._attend, (q, k, v, None))
    torch.library.opcheck(module._attend, (q, k, v, starts))


def test_a_compiled_student_in_bfloat16_has_the_gradients_of_torchs_attention():
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (2, 71))
    documents = torch.arange(70).expand(2, -1) // 30
    found = []
    for backend, compiled in ((Backend.sdpa, False), (Backend.auto, False), (Backend.auto, True)):
        torch.manual_seed(1)
        model = Transformer(
            TransformerConfig(40, 64, 2, 4, context=70, codebook_dim=8, attention=backend),
            torch.randn(40, 8),
        ).train()
        if compiled:
            compile_blocks(model)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1], documents=documents)
            F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    for each in found[1:]:
        for name, wanted in found[0].items():
            assert (each[name] - wanted).norm() < 0.03 * wanted.norm(), name


def test_auto_takes_it_in_bfloat16_on_a_processor_alone():
    q = torch.zeros(1, 2, 1, 4)
    assert chosen(Backend.auto, None, q, 0.0) is Backend.sdpa
    assert chosen(Backend.auto, None, q.half(), 0.0) is Backend.sdpa  # slower in large products
    assert chosen(Backend.auto, None, q.bfloat16(), 0.0) is Backend.blockwise
    assert chosen(Backend.auto, None, q.bfloat16(), 0.1) is Backend.sdpa
    assert chosen(Backend.blockwise, None, q, 0.0) is Backend.blockwise
    with pytest.raises(ValueError, match=r"dropout 0.1: set student.net.attention=sdpa"):
        chosen(Backend.blockwise, None, q, 0.1)
