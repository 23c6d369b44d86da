"""Decoding against slow reference loops, and its independence of the batch."""

import copy
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from delvm.inference.decoding import SamplingConfig
from delvm.inference.generation import generate
from delvm.inference.sampling import (
    mean_embedding_ids,
    sample_from_uniform,
    top_k_top_p_probs,
)
from delvm.models.transformer import Init, Transformer, TransformerConfig


@pytest.fixture(scope="module")
def student() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(30, 32, 2, 4, max_seq_len=20, codebook_dim=8, init=Init.gpt2)
    model = Transformer(config, torch.randn(30, 8)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)  # far from uniform, so that samples differ
    return model


def decode_without_cache(student: Transformer, prefix: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy decoding without a cache."""
    ids = prefix
    for _ in range(count):
        ids = torch.cat((ids, student(ids)[:, -1:].argmax(-1)), dim=1)
    return ids[:, prefix.shape[1] :]


def test_greedy_equals_decoding_without_cache(student):
    prefix = torch.randint(0, 30, (3, 7))
    assert torch.equal(generate(student, prefix, 13), decode_without_cache(student, prefix, 13))


class WithoutCache(torch.nn.Module):
    """A student from elsewhere: neither a key-value cache nor special tokens."""

    def __init__(self, student: Transformer) -> None:
        super().__init__()
        self.head, self.network = student.head, student
        self.vocab_size, self.max_seq_len = student.vocab_size, student.max_seq_len

    def forward_hidden(self, input_ids, cache=None, document_ids=None):
        assert cache is None
        return self.network.forward_hidden(input_ids)


def test_student_without_cache_generates_the_same(student):
    prefix = torch.randint(0, 30, (3, 7))
    ids = generate(WithoutCache(student).eval(), prefix, 13)
    assert torch.equal(ids, generate(student, prefix, 13))


def test_answer_does_not_depend_on_batch(student):
    prefix = torch.randint(0, 30, (5, 6))
    sampling = SamplingConfig(temperature=1.0, top_k=20, top_p=0.9, seed=3)
    together = generate(student, prefix, 9, sampling)
    for row in range(5):
        alone = generate(student, prefix[row : row + 1], 9, sampling, row_ids=[row])
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together, generate(student, prefix, 9, replace(sampling, seed=4)))


def test_mean_embedding_ids_match_slow_loop():
    torch.manual_seed(2)
    codebook, logits = torch.randn(6, 3), 2 * torch.randn(40, 8)  # two special tokens
    ids = mean_embedding_ids(logits, codebook)
    for row, chosen in zip(logits, ids, strict=True):
        mass = [math.exp(value) for value in row[:6].tolist()]
        mean = [sum(m * codebook[i, j].item() for i, m in enumerate(mass)) for j in range(3)]
        mean = [value / sum(mass) for value in mean]
        gaps = [sum((codebook[i, j].item() - mean[j]) ** 2 for j in range(3)) for i in range(6)]
        assert int(chosen) == gaps.index(min(gaps))
    assert (ids != logits[:, :6].argmax(-1)).any()  # the mean is not the mode


def test_mean_embedding_equals_greedy_for_confident_student(student):
    prefix = torch.randint(0, 30, (2, 5))
    mean: Any = {"sampling": SamplingConfig("mean_embedding"), "codebook": torch.randn(30, 8)}
    confident = copy.deepcopy(student)
    confident.head.weight.data *= 1e4
    assert torch.equal(generate(confident, prefix, 8, **mean), generate(confident, prefix, 8))
    assert not torch.equal(generate(student, prefix, 8, **mean), generate(student, prefix, 8))


def test_low_temperature_is_greedy(student):
    prefix = torch.randint(0, 30, (2, 5))
    sampled = generate(student, prefix, 8, SamplingConfig(temperature=1e-4))
    assert torch.equal(sampled, generate(student, prefix, 8))


def test_top_k_top_p_match_slow_loop():
    torch.manual_seed(1)
    logits = torch.randn(4, 12)
    probs = top_k_top_p_probs(logits, 0.7, 6, 0.8)
    for row, result in zip(logits / 0.7, probs, strict=True):
        order = row.argsort(descending=True).tolist()[:6]
        p = torch.zeros(12)
        p[order] = row[order].softmax(0)
        kept, mass = [], 0.0
        for i in order:
            kept.append(i)
            mass += p[i].item()
            if mass >= 0.8:
                break
        expected = torch.zeros(12)
        expected[kept] = p[kept] / p[kept].sum()
        assert torch.allclose(result, expected, atol=1e-6)


def test_sample_from_uniform_follows_probabilities():
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3]])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    ids = sample_from_uniform(p.expand(10_000, -1), uniform)
    counts = torch.bincount(ids, minlength=4)
    assert counts.tolist() == pytest.approx([1000, 0, 6000, 3000], abs=2)


def test_context_overflow_and_missing_codebook_are_errors(student):
    with pytest.raises(ValueError, match=r"15 \+ 6 tokens exceed max_seq_len 20"):
        generate(student, torch.zeros(1, 15, dtype=torch.int64), 6)
    with pytest.raises(ValueError, match="needs the tokenizer's codebook"):
        generate(student, torch.zeros(1, 5, dtype=torch.int64), 6, SamplingConfig())
