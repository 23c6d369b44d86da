"""Keys and values in int8: what is kept, what is read, and who uses it."""

import pytest
import torch

from delvm.inference.engine import Engine
from delvm.models.attention import AttentionBackend, KVCache
from delvm.models.cpu.decode import available
from delvm.models.int8_cache import Int8KVCache, quantize_vectors
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.weight_precision import quantize_int8

LAYERS, HEADS, DIM = 2, 3, 8


def make_cache(rows: int, prefix: KVCache | None = None) -> Int8KVCache:
    return Int8KVCache(LAYERS, rows, HEADS, 20, DIM, torch.float32, torch.device("cpu"), prefix)


def fill(cache: Int8KVCache, *counts: int) -> list[torch.Tensor]:
    """Append tokens to all layers, some at a time; the keys that were appended."""
    keys = []
    for count in counts:
        for layer in range(LAYERS):
            k, v = torch.randn(2, len(cache.buffer[0, 0]), count, HEADS, DIM)
            cache.append(layer, k, v)
            keys.append(k)
        cache.advance(count)
    return keys


def test_each_element_is_within_half_a_step():
    x = torch.randn(4, 5, DIM) * torch.tensor([1e-3, 1.0, 30.0, 0.0])[:, None, None]
    ints, scales = quantize_vectors(x)
    assert ints.dtype is torch.int8 and scales.shape == (4, 5)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((ints * scales[..., None] - x).abs() <= step / 2 * 1.001).all()
    assert not ints[3].any() and scales.isfinite().all()


def test_tokens_are_read_as_they_attended_to_themselves_and_do_not_depend_on_the_others():
    torch.manual_seed(0)
    k, v = torch.randn(2, 2, 6, HEADS, DIM)
    together, apart = make_cache(2), make_cache(2)
    rounded = together.append(1, k, v)
    for token in range(6):
        apart.append(1, k[:, token : token + 1], v[:, token : token + 1])
        apart.advance(1)
    for found, one_by_one, original in zip(
        together.own(1, 6), apart.own(1, 6), (k, v), strict=True
    ):
        assert torch.equal(found, one_by_one)
        assert (found.transpose(1, 2) - original).abs().max() < original.abs().max() / 200
    assert all(
        torch.equal(x.transpose(1, 2), y) for x, y in zip(rounded, together.own(1, 6), strict=True)
    )


def test_dequantized_cache_holds_what_is_read_and_its_prefix():
    torch.manual_seed(0)
    prefix = make_cache(1)
    fill(prefix, 4)
    cache = make_cache(2, prefix)
    fill(cache, 3, 1)
    plain = cache.dequantized()
    assert type(plain) is type(plain.prefix) is KVCache and plain.length == cache.length == 8
    for layer in range(LAYERS):
        for read in ("own", "of_prefix"):
            arguments = (layer, 8) if read == "own" else (layer,)
            for found, expected in zip(
                getattr(plain, read)(*arguments), getattr(cache, read)(*arguments), strict=True
            ):
                assert torch.equal(found, expected)


def make_student(attention: AttentionBackend = AttentionBackend.auto) -> Transformer:
    torch.manual_seed(0)
    cfg = TransformerConfig(64, 128, 2, 4, max_seq_len=96, codebook_dim=8, attention=attention)
    return Transformer(cfg, torch.randn(64, 8)).eval()


@pytest.mark.skipif(not available(), reason="needs a CPU with bfloat16 and a compiler")
def test_cache_is_int8_where_weights_are_and_the_cpu_decodes():
    student = make_student()
    assert type(student.make_kv_cache(1)) is KVCache
    quantize_int8(student)
    assert type(student.make_kv_cache(1)) is Int8KVCache
    slow = make_student(AttentionBackend.sdpa)
    quantize_int8(slow)
    assert type(slow.make_kv_cache(1)) is KVCache


@pytest.mark.skipif(not available(), reason="needs a CPU with bfloat16 and a compiler")
def test_a_draft_checks_its_tokens_on_the_dequantized_cache():
    torch.manual_seed(1)
    student, draft = make_student(), make_student()
    quantize_int8(student)
    prompt, queries = torch.randint(64, (24,)), torch.randint(64, (3, 8))
    plain = Engine(student).generate([prompt], queries, 30)
    engine = Engine(student, draft=draft)
    found = engine.generate([prompt], queries, 30)
    assert engine.speculation.accepted > 0
    assert (found == plain).float().mean() > 0.9  # a token may be one of two that are near
