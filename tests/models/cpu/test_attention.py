"""Attention in bfloat16 on a processor against torch's, and against one document at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.models.attention import AttentionBackend, PackedDocuments, sdpa, select_backend
from delvm.models.cpu import attention as module
from delvm.models.cpu.attention import blockwise
from delvm.models.precision import has_native_bf16
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.training.compiling import compile_blocks

needed = pytest.mark.skipif(not has_native_bf16("cpu"), reason="this processor has no bfloat16")


def drawn(length: int, width: int = 16, rows: int = 2, heads: int = 3) -> list[Tensor]:
    """Queries, keys, values and a slope of the result, each (B, T, H, D)."""
    torch.manual_seed(length)
    return [torch.randn(rows, length, heads, width).bfloat16() for _ in range(4)]


def with_gradients(attention, tensors, slope) -> list[Tensor]:
    """The result, and the gradients of q, k and v."""
    leaves = [each.clone().requires_grad_() for each in tensors]
    result = attention(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, slope)]


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention over whole rows."""
    return sdpa(q, k, v, None, 0.0)


def exact(tensors, slope) -> list[Tensor]:
    """The same in float32."""
    return with_gradients(plain, [each.float() for each in tensors], slope.float())


def close(found: Tensor, truth: Tensor) -> bool:
    """Whether numbers are those of float32, but for some roundings to bfloat16."""
    return bool((found.float() - truth).abs().max() <= 0.02 * truth.abs().max() + 1e-3)


# below a block, one block exactly, a part of the last one, several chunks of queries
@needed
@pytest.mark.parametrize("length", [1, 5, 64, 130, 257, 1100])
@pytest.mark.parametrize("width", [2, 6, 64])
def test_it_is_torchs_attention(length, width):
    *tensors, slope = drawn(length, width)
    found = with_gradients(blockwise, tensors, slope)
    for a, truth in zip(found, exact(tensors, slope), strict=True):
        assert a.dtype == torch.bfloat16 and a.shape == truth.shape and close(a, truth)


@needed
@pytest.mark.parametrize("spread", [1, 9, 25])  # of the scores; those of trained students reach 40
def test_it_is_as_near_to_the_truth_as_torchs(spread):
    q, k, v, slope = drawn(600, width=64)
    tensors = [q * spread**0.5, k * spread**0.5, v]
    ours, torchs = (with_gradients(each, tensors, slope) for each in (blockwise, plain))
    for a, b, truth in zip(ours, torchs, exact(tensors, slope), strict=True):
        assert (a.float() - truth).std() < 1.1 * (b.float() - truth).std()


@needed
@pytest.mark.parametrize("length", [9, 200, 700])
def test_documents_are_each_alone(length):
    *tensors, slope = drawn(length)
    sizes = [[length // 3, length // 2, length - length // 3 - length // 2], [length]]
    numbers = torch.stack(
        [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in sizes]
    )
    found = with_gradients(
        lambda q, k, v: blockwise(q, k, v, PackedDocuments(numbers).start_index), tensors, slope
    )
    for row, lengths in enumerate(sizes):
        begin = 0
        for size in lengths:
            part = (slice(row, row + 1), slice(begin, begin + size))
            alone = exact([each[part] for each in tensors], slope[part])
            for a, truth in zip(found, alone, strict=True):
                assert close(a[part], truth)
            begin += size


@needed
def test_documents_of_one_token_take_their_own_value():
    q, k, v, slope = drawn(150)
    starts = torch.arange(150).expand(2, -1)
    result, to_q, to_k, to_v = with_gradients(
        lambda q, k, v: blockwise(q, k, v, starts), (q, k, v), slope
    )
    assert torch.equal(result, v) and torch.equal(to_v, slope)
    assert max(to_q.abs().max(), to_k.abs().max()) < 0.1  # a softmax of one score is flat


@needed
def test_it_is_the_same_whatever_the_threads():
    *tensors, slope = drawn(300)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(with_gradients(blockwise, tensors, slope))
    torch.set_num_threads(before)
    for each in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each, found[0], strict=True))


@needed
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_seen(bad):
    """The guard of a run skips such steps, so that none may be lost on the way."""
    q, k, v, slope = drawn(100)
    q[1, 70, 2, 3] = bad
    result, to_q, to_k, _ = with_gradients(blockwise, (q, k, v), slope)
    assert result[1, 70, 2].isnan().all() and to_q[1, 70, 2].isnan().all()
    assert to_k[1, :71, 2].isnan().all() and result[0].isfinite().all()


@needed
def test_tensors_that_are_not_contiguous():
    *tensors, slope = drawn(70)
    turned = [each.transpose(1, 2).contiguous().transpose(1, 2) for each in (*tensors, slope)]
    found = with_gradients(blockwise, turned[:3], turned[3])
    wanted = with_gradients(blockwise, tensors, slope)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_of_nothing_comes_nothing():
    q = torch.zeros(0, 5, 2, 4).bfloat16()
    starts = torch.zeros(0, 5, dtype=torch.int64)
    assert blockwise(q, q, q, starts).shape == blockwise(q, q, q).shape == q.shape


def test_what_does_not_fit_is_refused():
    q, starts = torch.zeros(1, 5, 2, 4).bfloat16(), torch.zeros(1, 5, dtype=torch.int64)
    odd, few = torch.zeros(1, 5, 2, 3).bfloat16(), q[:, :4]
    for tensors in ((q.float(), q.float(), q.float()), (odd, odd, odd), (q, few, few)):
        with pytest.raises(ValueError, match="bfloat16, D even, three alike"):
            blockwise(*tensors)
    for wrong in (starts.int(), starts[:, :4]):
        with pytest.raises(ValueError, match="starts are"):
            blockwise(q, q, q, wrong)


@needed
def test_the_operators_are_sound():
    """torch's own checks: what the compiler is told of shapes, aliases and gradients holds."""
    q, k, v, slope = drawn(70)
    starts = torch.zeros(2, 70, dtype=torch.int64)
    for each in (None, starts):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        torch.library.opcheck(module._attend, (*leaves, each))
        out, sums = module._attend(q, k, v, each)
        torch.library.opcheck(module._slopes, (slope, q, k, v, each, out, sums))


@needed
def test_a_compiled_student_in_bfloat16_has_the_gradients_of_torchs_attention():
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (2, 71))
    documents = torch.arange(70).expand(2, -1) // 30
    found = []
    for backend, compiled in (
        (AttentionBackend.sdpa, False),
        (AttentionBackend.auto, False),
        (AttentionBackend.auto, True),
    ):
        torch.manual_seed(1)
        model = Transformer(
            TransformerConfig(40, 64, 2, 4, max_seq_len=70, codebook_dim=8, attention=backend),
            torch.randn(40, 8),
        ).train()
        if compiled:
            compile_blocks(model)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1], document_ids=documents)
            F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        found.append({n: p.grad for n, p in model.named_parameters()})
    for each in found[1:]:
        for name, wanted in found[0].items():
            assert (each[name] - wanted).norm() < 0.03 * wanted.norm(), name


@needed
def test_auto_takes_it_in_bfloat16_on_a_processor_alone():
    q = torch.zeros(1, 2, 1, 4)
    assert select_backend(AttentionBackend.auto, None, q, 0.0) is AttentionBackend.sdpa
    assert select_backend(AttentionBackend.auto, None, q.half(), 0.0) is AttentionBackend.sdpa
    assert (
        select_backend(AttentionBackend.auto, None, q.bfloat16(), 0.0) is AttentionBackend.cpu_flash
    )
    assert select_backend(AttentionBackend.auto, None, q.bfloat16(), 0.1) is AttentionBackend.sdpa
    assert (
        select_backend(AttentionBackend.cpu_flash, None, q.bfloat16(), 0.0)
        is AttentionBackend.cpu_flash
    )
    for kind, dropout in ((torch.float32, 0.0), (torch.bfloat16, 0.1)):
        with pytest.raises(ValueError, match=rf"dropout {dropout}: set student.net.attention=sdpa"):
            select_backend(AttentionBackend.cpu_flash, None, q.to(kind), dropout)


@needed
def test_without_onednn_torchs_is_taken_and_a_line_says_so(capsys):
    q = torch.zeros(1, 2, 1, 4).bfloat16()
    module._tried.cache_clear()
    try:
        with torch.backends.mkldnn.flags(enabled=False):
            with pytest.raises(RuntimeError, match="switched off"):
                blockwise(q, q, q)
            for _ in range(2):
                assert select_backend(AttentionBackend.auto, None, q, 0.0) is AttentionBackend.sdpa
        assert capsys.readouterr().err.count("attention is torch's") == 1
    finally:
        module._tried.cache_clear()
