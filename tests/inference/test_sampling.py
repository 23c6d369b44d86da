"""Drawing tokens: against a slow oracle, and the same whatever the batch."""

import copy
import math

import pytest
import torch

from delvm.inference.sampling import draw, filtered, generate, nearest_to_expected
from delvm.models.transformer import Init, Transformer, TransformerConfig


@pytest.fixture(scope="module")
def student() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(30, 32, 2, 4, context=20, codebook_dim=8, init=Init.ordinary)
    model = Transformer(config, torch.randn(30, 8)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)  # far from uniform, so that draws differ
    return model


def oracle(student: Transformer, prefix: torch.Tensor, count: int) -> torch.Tensor:
    """Greedy decoding without a cache."""
    ids = prefix
    for _ in range(count):
        ids = torch.cat((ids, student(ids)[:, -1:].argmax(-1)), dim=1)
    return ids[:, prefix.shape[1] :]


def test_greedy_equals_decoding_without_cache(student):
    prefix = torch.randint(0, 30, (3, 7))
    assert torch.equal(generate(student, prefix, 13), oracle(student, prefix, 13))


def test_an_answer_does_not_depend_on_its_batch(student):
    prefix = torch.randint(0, 30, (5, 6))
    how = {"temperature": 1.0, "top_k": 20, "top_p": 0.9, "seed": 3}
    together = generate(student, prefix, 9, **how)
    for row in range(5):
        alone = generate(student, prefix[row : row + 1], 9, first_row=row, **how)
        assert torch.equal(alone[0], together[row])
    assert not torch.equal(together, generate(student, prefix, 9, **(how | {"seed": 4})))


def test_the_expected_code_against_loops():
    torch.manual_seed(2)
    codes, logits = torch.randn(6, 3), 2 * torch.randn(40, 8)  # two tokens beyond the codebook
    got = nearest_to_expected(logits, codes)
    for row, chosen in zip(logits, got, strict=True):
        mass = [math.exp(value) for value in row[:6].tolist()]
        mean = [sum(m * codes[i, j].item() for i, m in enumerate(mass)) for j in range(3)]
        mean = [value / sum(mass) for value in mean]
        gaps = [sum((codes[i, j].item() - mean[j]) ** 2 for j in range(3)) for i in range(6)]
        assert int(chosen) == gaps.index(min(gaps))
    assert (got != logits[:, :6].argmax(-1)).any()  # the mean is not the mode


def test_a_sure_student_answers_the_same_either_way(student):
    prefix = torch.randint(0, 30, (2, 5))
    codes = torch.randn(30, 8)
    sure = copy.deepcopy(student)
    sure.head.weight.data *= 1e4
    assert torch.equal(generate(sure, prefix, 8, codes=codes), generate(sure, prefix, 8))
    assert not torch.equal(generate(student, prefix, 8, codes=codes), generate(student, prefix, 8))


def test_low_temperature_is_greedy(student):
    prefix = torch.randint(0, 30, (2, 5))
    drawn = generate(student, prefix, 8, temperature=1e-4)
    assert torch.equal(drawn, generate(student, prefix, 8))


def test_top_k_and_top_p_against_loops():
    torch.manual_seed(1)
    logits = torch.randn(4, 12)
    got = filtered(logits, 0.7, 6, 0.8)
    for row, result in zip(logits / 0.7, got, strict=True):
        order = row.argsort(descending=True).tolist()[:6]
        p = torch.zeros(12)
        p[order] = row[order].softmax(0)
        kept, mass = [], 0.0
        for i in order:
            kept.append(i)
            mass += p[i].item()
            if mass >= 0.8:
                break
        wanted = torch.zeros(12)
        wanted[kept] = p[kept] / p[kept].sum()
        assert torch.allclose(result, wanted, atol=1e-6)


def test_draw_follows_the_probabilities():
    p = torch.tensor([[0.1, 0.0, 0.6, 0.3]])
    uniform = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    ids = draw(p.expand(10_000, -1), uniform)
    counts = torch.bincount(ids, minlength=4)
    assert counts.tolist() == pytest.approx([1000, 0, 6000, 3000], abs=2)


def test_too_long_for_the_context(student):
    with pytest.raises(ValueError, match=r"15 \+ 6 tokens for a context of 20"):
        generate(student, torch.zeros(1, 15, dtype=torch.int64), 6)
