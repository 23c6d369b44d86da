"""The CPU kernel against torch's attention, and against one document at a time."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from delvm.models.attention import AttentionBackend, PackedDocuments, sdpa, select_backend
from delvm.models.cpu import attention
from delvm.models.cpu.attention import cpu_flash_attention
from delvm.models.precision import has_native_bf16
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.training.compiling import compile_blocks

needs_bf16 = pytest.mark.skipif(not has_native_bf16("cpu"), reason="no native bfloat16 here")


def random_inputs(
    length: int, head_dim: int = 16, batch_size: int = 2, n_heads: int = 3
) -> list[Tensor]:
    """Queries, keys, values and a gradient of the result, each (B, T, H, D)."""
    torch.manual_seed(length)
    return [torch.randn(batch_size, length, n_heads, head_dim).bfloat16() for _ in range(4)]


def with_gradients(function, tensors, grad_out) -> list[Tensor]:
    """The result, and the gradients of q, k and v."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    result = function(*leaves)
    return [result.detach(), *torch.autograd.grad(result, leaves, grad_out)]


def torch_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """torch's attention over full rows."""
    return sdpa(q, k, v, None, 0.0)


def in_float32(tensors, grad_out) -> list[Tensor]:
    """Result and gradients of torch's attention in float32."""
    return with_gradients(torch_attention, [x.float() for x in tensors], grad_out.float())


def is_close(actual: Tensor, expected: Tensor) -> bool:
    """Whether values equal those in float32 up to a few roundings to bfloat16."""
    tolerance = 0.02 * expected.abs().max() + 1e-3
    return bool((actual.float() - expected).abs().max() <= tolerance)


# less than a block, exactly one block, a partial last block, several chunks of queries
@needs_bf16
@pytest.mark.parametrize("length", [1, 5, 64, 130, 257, 1100])
@pytest.mark.parametrize("head_dim", [2, 6, 64])
def test_kernel_equals_torch_attention(length, head_dim):
    *tensors, grad_out = random_inputs(length, head_dim)
    actual = with_gradients(cpu_flash_attention, tensors, grad_out)
    for a, b in zip(actual, in_float32(tensors, grad_out), strict=True):
        assert a.dtype == torch.bfloat16 and a.shape == b.shape and is_close(a, b)


@needs_bf16
@pytest.mark.parametrize("spread", [1, 9, 25])  # of the scores; up to 40 in trained students
def test_error_vs_float32_is_at_most_torchs(spread):
    q, k, v, grad_out = random_inputs(600, head_dim=64)
    tensors = [q * spread**0.5, k * spread**0.5, v]
    kernel = with_gradients(cpu_flash_attention, tensors, grad_out)
    baseline = with_gradients(torch_attention, tensors, grad_out)
    for a, b, exact in zip(kernel, baseline, in_float32(tensors, grad_out), strict=True):
        assert (a.float() - exact).std() < 1.1 * (b.float() - exact).std()


@needs_bf16
@pytest.mark.parametrize("length", [9, 200, 700])
def test_packed_documents_equal_separate_documents(length):
    *tensors, grad_out = random_inputs(length)
    sizes = [[length // 3, length // 2, length - length // 3 - length // 2], [length]]
    document_ids = torch.stack(
        [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in sizes]
    )
    start_index = PackedDocuments(document_ids).start_index
    packed = with_gradients(
        lambda q, k, v: cpu_flash_attention(q, k, v, start_index), tensors, grad_out
    )
    for row, lengths in enumerate(sizes):
        begin = 0
        for size in lengths:
            document = (slice(row, row + 1), slice(begin, begin + size))
            alone = in_float32([x[document] for x in tensors], grad_out[document])
            for a, b in zip(packed, alone, strict=True):
                assert is_close(a[document], b)
            begin += size


@needs_bf16
def test_document_of_one_token_returns_its_value():
    q, k, v, grad_out = random_inputs(150)
    start_index = torch.arange(150).expand(2, -1)
    result, grad_q, grad_k, grad_v = with_gradients(
        lambda q, k, v: cpu_flash_attention(q, k, v, start_index), (q, k, v), grad_out
    )
    assert torch.equal(result, v) and torch.equal(grad_v, grad_out)
    # a softmax over one score is constant
    assert max(grad_q.abs().max(), grad_k.abs().max()) < 0.1


@needs_bf16
def test_result_is_independent_of_num_threads():
    *tensors, grad_out = random_inputs(300)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(with_gradients(cpu_flash_attention, tensors, grad_out))
    torch.set_num_threads(before)
    for each in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(each, results[0], strict=True))


@needs_bf16
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_propagates(bad):
    """Training skips steps with a non-finite gradient, so none may be lost in the kernel."""
    q, k, v, grad_out = random_inputs(100)
    q[1, 70, 2, 3] = bad
    result, grad_q, grad_k, _ = with_gradients(cpu_flash_attention, (q, k, v), grad_out)
    assert result[1, 70, 2].isnan().all() and grad_q[1, 70, 2].isnan().all()
    assert grad_k[1, :71, 2].isnan().all() and result[0].isfinite().all()


@needs_bf16
def test_non_contiguous_tensors():
    *tensors, grad_out = random_inputs(70)
    strided = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (*tensors, grad_out)]
    actual = with_gradients(cpu_flash_attention, strided[:3], strided[3])
    expected = with_gradients(cpu_flash_attention, tensors, grad_out)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_empty_input():
    q = torch.zeros(0, 5, 2, 4).bfloat16()
    start_index = torch.zeros(0, 5, dtype=torch.int64)
    assert cpu_flash_attention(q, q, q, start_index).shape == q.shape
    assert cpu_flash_attention(q, q, q).shape == q.shape


def test_unsupported_tensors_are_refused():
    q, start_index = torch.zeros(1, 5, 2, 4).bfloat16(), torch.zeros(1, 5, dtype=torch.int64)
    odd, short = torch.zeros(1, 5, 2, 3).bfloat16(), q[:, :4]
    for tensors in ((q.float(), q.float(), q.float()), (odd, odd, odd), (q, short, short)):
        with pytest.raises(ValueError, match="bfloat16 of equal shape with an even D"):
            cpu_flash_attention(*tensors)
    for wrong in (start_index.int(), start_index[:, :4]):
        with pytest.raises(ValueError, match="start_index is"):
            cpu_flash_attention(q, q, q, wrong)


@pytest.mark.slow
@needs_bf16
def test_operators_pass_opcheck():
    """torch's own checks of the declared shapes, aliases and gradients."""
    q, k, v, grad_out = random_inputs(70)
    zeros = torch.zeros(2, 70, dtype=torch.int64)
    for start_index in (None, zeros):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        torch.library.opcheck(attention._forward, (*leaves, start_index))
        out, logsumexp = attention._forward(q, k, v, start_index)
        inputs = (grad_out, q, k, v, start_index, out, logsumexp)
        torch.library.opcheck(attention._backward, inputs)


@pytest.mark.slow
@needs_bf16
def test_gradients_of_bf16_student_equal_sdpa():
    """With torch's attention, with the kernel, and with the kernel in compiled blocks."""
    torch.manual_seed(0)
    ids = torch.randint(0, 40, (2, 71))
    document_ids = torch.arange(70).expand(2, -1) // 30
    gradients = []
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
            logits = model(ids[:, :-1], document_ids=document_ids)
            F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters()})
    for each in gradients[1:]:
        for name, expected in gradients[0].items():
            assert (each[name] - expected).norm() < 0.03 * expected.norm(), name


@needs_bf16
def test_auto_selects_kernel_for_bf16_without_dropout():
    auto, kernel, torchs = (
        AttentionBackend.auto,
        AttentionBackend.cpu_flash,
        AttentionBackend.sdpa,
    )
    q = torch.zeros(1, 2, 1, 4)
    assert select_backend(auto, None, q, 0.0) is torchs
    assert select_backend(auto, None, q.half(), 0.0) is torchs
    assert select_backend(auto, None, q.bfloat16(), 0.0) is kernel
    assert select_backend(auto, None, q.bfloat16(), 0.1) is torchs
    assert select_backend(kernel, None, q.bfloat16(), 0.0) is kernel
    for dtype, dropout in ((torch.float32, 0.0), (torch.bfloat16, 0.1)):
        message = rf"cpu_flash does not support .* dropout {dropout}: set attention=sdpa"
        with pytest.raises(ValueError, match=message):
            select_backend(kernel, None, q.to(dtype), dropout)


@needs_bf16
def test_disabled_onednn_falls_back_to_sdpa_and_logs_once(capsys):
    q = torch.zeros(1, 2, 1, 4).bfloat16()
    attention._probe.cache_clear()
    try:
        with torch.backends.mkldnn.flags(enabled=False):
            with pytest.raises(RuntimeError, match="is disabled"):
                cpu_flash_attention(q, q, q)
            for _ in range(2):
                assert select_backend(AttentionBackend.auto, None, q, 0.0) is AttentionBackend.sdpa
        assert capsys.readouterr().err.count("falling back to PyTorch SDPA") == 1
    finally:
        attention._probe.cache_clear()


@needs_bf16
@pytest.mark.parametrize("prefix_length", [1, 64, 100])
@pytest.mark.parametrize("length", [2, 64, 130])
def test_attention_after_prefix_is_as_close_to_float32_as_torchs(length, prefix_length):
    q, k, v, _ = random_inputs(length)
    prefix = torch.randn(2, 3, prefix_length + 7, 16).bfloat16()[:, :, :prefix_length]

    def complete(q: Tensor, *own: Tensor) -> Tensor:
        rows = [x[None].expand(2, -1, -1, -1).transpose(1, 2).to(q.dtype) for x in prefix]
        k, v = (torch.cat(pair, dim=1).transpose(1, 2) for pair in zip(rows, own, strict=True))
        mask = torch.ones(length, prefix_length + length).bool().tril(prefix_length)
        return F.scaled_dot_product_attention(q.transpose(1, 2), k, v, mask).transpose(1, 2)

    found = attention.attend_after_prefix(q, k, v, prefix[0], prefix[1])
    exact = complete(q.float(), k.float(), v.float())
    error = (found - exact).abs().mean()
    assert 0 < error <= 1.1 * (complete(q, k, v) - exact).abs().mean()
