"""The C++ pass over a few tokens equals PyTorch's layers, row by row, with and without a prefix."""

from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from delvm.inference.engine import Engine
from delvm.inference.generation import generate
from delvm.models.attention import AttentionBackend, KVCache
from delvm.models.cpu.decode import CPUDecoder, available, has_int8_blocks
from delvm.models.int8_cache import Int8KVCache
from delvm.models.mlp import MLPKind
from delvm.models.transformer import InputEmbedding, Transformer, TransformerConfig
from delvm.models.weight_precision import quantize_int8

pytestmark = pytest.mark.skipif(not available(), reason="needs a CPU with bfloat16 and a compiler")

CONFIG = TransformerConfig(64, 128, 2, 4, max_seq_len=96, codebook_dim=8)


def make(dtype: torch.dtype = torch.float32, int8: bool = False, **changes: Any) -> Transformer:
    """A model whose outputs are far from zero, and whose biases and norms matter."""
    torch.manual_seed(0)
    model = Transformer(replace(CONFIG, **changes), torch.randn(64, 8)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, float(parameter.ndim == 1), 0.1)
    model = model.to(dtype)
    if int8:
        quantize_int8(model)
    return model


def make_cache(model: Transformer, rows: int, length: int, prefix: KVCache | None) -> KVCache:
    """A cache as `make_kv_cache` makes it, in int8 with int8 weights, whatever computes on it."""
    cfg, weight = model.config, model.head.weight
    make = Int8KVCache if has_int8_blocks(model) else KVCache
    size = cfg.n_layers, rows, cfg.n_heads, length, cfg.head_dim
    return make(*size, weight.dtype, weight.device, prefix)


def hidden_states(
    model: Transformer, ids: Tensor, cuts: list[int], prefix: Tensor | None = None
) -> tuple[Tensor, Any]:
    """Hidden states of ids (B, T), computed part by part, and what computed them."""
    with torch.inference_mode():
        cache = None
        if prefix is not None:
            cache = make_cache(model, 1, len(prefix) + 3, None)
            model.forward_hidden(prefix[None], cache)
        cache = make_cache(model, len(ids), model.max_seq_len, cache)
        parts = [model.forward_hidden(ids[:, a:b], cache) for a, b in pairwise([0, *cuts])]
    return torch.cat(parts, dim=1).float(), cache.decoder


CUTS = [1, 2, 3, 8, 9, 10, 20, 21, 32, 40]


@pytest.mark.parametrize("shared", [0, 17])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_equals_pytorch(rows, shared):
    torch.manual_seed(1)
    ids, prefix = torch.randint(64, (rows, 40)), torch.randint(64, (shared,)) if shared else None
    found, decoder = hidden_states(make(), ids, CUTS, prefix)
    expected, none = hidden_states(make(attention=AttentionBackend.sdpa), ids, CUTS, prefix)
    assert isinstance(decoder, CPUDecoder) and none is None
    assert torch.allclose(found, expected, atol=2e-5)


@pytest.mark.parametrize("heads", [2, 4])
@pytest.mark.parametrize("shared", [0, 17])
@pytest.mark.parametrize("rows", [1, 2, 3, 5])
def test_int8_equals_pytorch_on_the_same_cache(rows, shared, heads):
    torch.manual_seed(1)
    ids, prefix = torch.randint(64, (rows, 40)), torch.randint(64, (shared,)) if shared else None
    fast = make(int8=True, n_heads=heads)
    slow = make(int8=True, n_heads=heads, attention=AttentionBackend.sdpa)
    before = None
    if prefix is not None:
        before = make_cache(slow, 1, shared + 3, None)
        with torch.inference_mode():
            slow.forward_hidden(prefix[None], before)
    caches = [make_cache(model, rows, 96, before) for model in (fast, slow)]
    equal = 0
    for start, end in pairwise([0, *CUTS]):
        with torch.inference_mode():
            found, expected = (
                model.forward_hidden(ids[:, start:end], cache)
                for model, cache in zip((fast, slow), caches, strict=True)
            )
        kept = [each.buffer[..., start:end, :].int() for each in caches]
        scales = [each.scales[..., start:end] for each in caches]
        is_other = kept[0] != kept[1]  # by the rounding of sums, where a value is between two
        assert (kept[0] - kept[1]).abs().max() <= 1 and is_other.float().mean() < 1e-3
        assert torch.allclose(scales[0], scales[1], rtol=0.01 if is_other.any() else 1e-5)
        if not is_other.any():
            assert torch.allclose(found, expected, atol=2e-5)
            equal += 1
        caches[0].buffer.copy_(caches[1].buffer)
        caches[0].scales.copy_(caches[1].scales)
    assert isinstance(caches[0].decoder, CPUDecoder) and equal > len(CUTS) / 2


def test_more_rows_than_one_pass_takes_equal_pytorch():
    torch.manual_seed(1)
    ids, prefix, cuts = torch.randint(64, (150, 6)), torch.randint(64, (9,)), [2, 3, 4, 5, 6]
    found, decoder = hidden_states(make(), ids, cuts, prefix)
    expected, _ = hidden_states(make(attention=AttentionBackend.sdpa), ids, cuts, prefix)
    assert isinstance(decoder, CPUDecoder) and torch.allclose(found, expected, atol=2e-5)


def test_without_bias_equals_pytorch():
    ids = torch.randint(64, (2, 30))
    cuts = [4, *range(5, 31)]
    found, decoder = hidden_states(make(bias=False, mlp_bias=True), ids, cuts)
    slow = make(bias=False, mlp_bias=True, attention=AttentionBackend.sdpa)
    assert isinstance(decoder, CPUDecoder)
    assert torch.allclose(found, hidden_states(slow, ids, cuts)[0], atol=2e-5)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("shared", [0, 70])
def test_bfloat16_is_at_least_as_close_to_float32_as_pytorch(shared, int8):
    torch.manual_seed(1)
    ids, prefix = torch.randint(64, (3, 24)), torch.randint(64, (shared,)) if shared else None
    cuts = [3, *range(4, 25)]
    exact, _ = hidden_states(make(int8=int8, attention=AttentionBackend.sdpa), ids, cuts, prefix)
    errors = []
    for attention in (AttentionBackend.auto, AttentionBackend.sdpa):
        model = make(torch.bfloat16, int8, attention=attention)
        errors.append((hidden_states(model, ids, cuts, prefix)[0] - exact).abs().mean().item())
    assert 0 < errors[0] <= 1.05 * errors[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_row_does_not_depend_on_the_others(dtype, shared):
    torch.manual_seed(2)
    # A learned embedding, since the product that projects codes rounds differently in a batch.
    model, prefix = (
        make(dtype, embedding=InputEmbedding.learned),
        torch.randint(64, (10,)) if shared else None,
    )
    ids, cuts = torch.randint(64, (7, 20)), [1, *range(2, 18), 20]
    together, _ = hidden_states(model, ids, cuts, prefix)
    for row in range(7):
        alone, _ = hidden_states(model, ids[row : row + 1], cuts, prefix)
        assert torch.equal(alone[0], together[row])


def test_256_steps_equal_the_pass_without_cache():
    model = make(max_seq_len=300)
    torch.nn.init.normal_(model.head.weight, std=0.02)
    ids = torch.randint(64, (2, 300))
    found, decoder = hidden_states(model, ids, [44, *range(45, 301)])
    with torch.inference_mode():
        expected = model(ids)
        assert isinstance(decoder, CPUDecoder)
        assert torch.allclose(model.head(found), expected, atol=1e-5)


@pytest.mark.parametrize(
    "changes", [{"qk_norm": True}, {"mlp": MLPKind.gelu}, {"attention": AttentionBackend.sdpa}]
)
def test_other_architectures_are_left_to_pytorch(changes):
    _, decoder = hidden_states(make(**changes), torch.randint(64, (1, 4)), [3, 4])
    assert not decoder


def test_hooks_gradients_and_training_are_left_to_pytorch():
    model, ids = make(), torch.randint(64, (1, 4))
    cache = model.make_kv_cache(1)
    assert model.forward_hidden(ids, cache).requires_grad and cache.decoder is None
    calls: list[object] = []
    model.blocks[0].mlp.up.register_forward_hook(lambda *args: calls.append(args))
    _, decoder = hidden_states(model, ids, [3, 4])
    assert decoder is False and len(calls) == 2


def test_greedy_answers_equal_pytorch_batched_and_alone_with_and_without_sharing():
    torch.manual_seed(3)
    prompt, queries = torch.randint(64, (24,)), torch.randint(64, (5, 8))
    rows = torch.cat((prompt.expand(5, -1), queries), dim=1)
    slow, fast = make(attention=AttentionBackend.sdpa), make()
    expected = generate(slow, rows, 40)
    assert torch.equal(generate(fast, rows, 40), expected)
    assert torch.equal(Engine(fast).generate([prompt], queries, 40), expected)
    for row, query in enumerate(queries):
        assert torch.equal(Engine(fast).generate([prompt], query[None], 40)[0], expected[row])


@pytest.mark.parametrize("shared", [0, 9])
def test_what_does_not_fit_into_the_cache_is_refused_and_changes_nothing(shared):
    model, prefix = make(), None
    ids = torch.randint(64, (2, 30))
    with torch.inference_mode():
        if shared:
            prefix = model.make_kv_cache(1, shared)
            model.forward_hidden(torch.randint(64, (1, shared)), prefix)
        cache = model.make_kv_cache(2, shared + 10, prefix)
        model.forward_hidden(ids[:, :8], cache)
        assert isinstance(cache.decoder, CPUDecoder)
        before = cache.buffer[..., :8, :].clone()
        with pytest.raises(ValueError, match=r"2 rows of 8 \+ 3 tokens do not fit .* 10 tokens"):
            model.forward_hidden(ids[:, 8:11], cache)
        with pytest.raises(ValueError, match="3 rows .* cache of 2 rows"):
            model.forward_hidden(torch.zeros(3, 1, dtype=torch.int64), cache)
        assert cache.length == shared + 8 and torch.equal(cache.buffer[..., :8, :], before)
        model.forward_hidden(ids[:, 8:10], cache)  # the last that fits


@pytest.mark.parametrize("part", ["head", "embed"])
def test_mixed_dtypes_are_left_to_pytorch(part):
    model = make(torch.bfloat16, embedding=InputEmbedding.learned)
    getattr(model, part).float()  # a head of another dtype gives the cache another one
    cache = model.make_kv_cache(1, 8)
    with torch.inference_mode(), suppress(RuntimeError):
        model.forward_hidden(torch.zeros(1, 3, dtype=torch.int64), cache)
    assert cache.decoder is False


@pytest.mark.parametrize("int8", [False, True])
def test_no_tokens_are_left_to_pytorch(int8):
    model = make(torch.bfloat16, int8)
    with torch.inference_mode():
        cache = model.make_kv_cache(2)
        model.forward_hidden(torch.randint(64, (2, 3)), cache)
        assert model.forward_hidden(torch.empty(2, 0, dtype=torch.int64), cache).shape[1] == 0
    assert cache.length == 3


@pytest.mark.parametrize("int8", [False, True])
def test_prefix_that_is_extended_later_changes_nothing(int8):
    model, ids = make(torch.bfloat16, int8), torch.randint(64, (2, 12))
    with torch.inference_mode():
        prefix = model.make_kv_cache(1)
        model.forward_hidden(ids[:1], prefix)
        before, after = (model.make_kv_cache(2, prefix=prefix) for _ in range(2))
        expected = model.forward_hidden(ids, before)
        model.forward_hidden(ids[:1], prefix)
        found = model.forward_hidden(ids, after)
    assert isinstance(after.decoder, CPUDecoder) and torch.equal(found, expected)


@pytest.mark.parametrize("int8", [False, True])
def test_prefix_that_grows_by_as_many_tokens_as_the_rows_changes_nothing(int8):
    model, ids = make(torch.bfloat16, int8), torch.randint(64, (2, 72))
    with torch.inference_mode():
        results = []
        for grows in (False, True):
            prefix = model.make_kv_cache(1)
            model.forward_hidden(ids[:1, :12], prefix)
            cache = model.make_kv_cache(2, prefix=prefix)
            model.forward_hidden(ids[:, :12], cache)
            if grows:
                model.forward_hidden(ids[:1, :12], prefix)
            results.append(model.forward_hidden(ids[:, 12:], cache))  # too many for C++ decoding
    assert torch.equal(*results)


@pytest.mark.parametrize("first", [KVCache, Int8KVCache])
def test_prefix_of_the_other_kind_of_cache_is_left_to_pytorch(first):
    """A hook, say, has C++ refused before or after the prefix has been read."""
    model, ids = make(torch.bfloat16, int8=True), torch.randint(64, (2, 12))
    cfg = model.config
    size = cfg.n_heads, model.max_seq_len, cfg.head_dim, torch.bfloat16, torch.device("cpu")
    with torch.inference_mode():
        results = []
        for second in (first, Int8KVCache if first is KVCache else KVCache):
            prefix = first(cfg.n_layers, 1, *size)
            model.forward_hidden(ids[:1], prefix)
            cache = second(cfg.n_layers, 2, *size, prefix)
            results.append(model.forward_hidden(ids, cache).float())
            assert not cache.decoder or second is first
            copy = cache.dequantized()
            assert copy.prefix is not None
            copied, own = copy.of_prefix(1), cache.of_prefix(1)
            assert all(torch.equal(x, y) for x, y in zip(copied, own, strict=True))
    assert torch.allclose(*results, atol=0.05)
