"""A shared prefix changes no answer, is computed once, and is stored once."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from delvm.inference.decoding import SamplingConfig
from delvm.inference.engine import Engine
from delvm.inference.generation import generate
from delvm.models import attention
from delvm.models.transformer import Init, Transformer, TransformerConfig
from tests.inference.test_sampling import WithoutCache

CODEBOOK = torch.randn(30, 8)
SAMPLED = SamplingConfig(temperature=1.0, top_k=20, top_p=0.9, seed=3)
METHODS = (SamplingConfig("greedy"), SAMPLED, SamplingConfig("mean_embedding"))


def make(**changes: Any) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(30, 32, 2, 4, max_seq_len=48, codebook_dim=8, init=Init.gpt2)
    model = Transformer(replace(config, **changes), torch.randn(30, 8)).eval()
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


@pytest.fixture(scope="module")
def student() -> Transformer:
    return make()


@pytest.mark.parametrize("sampling", METHODS, ids=lambda each: each.decoding)
@pytest.mark.parametrize("rows", [1, 5])
def test_shared_prefix_gives_the_tokens_of_complete_rows(student, rows, sampling):
    torch.manual_seed(1)
    prompt, queries = torch.randint(30, (20,)), torch.randint(30, (rows, 6))
    complete = torch.cat((prompt.expand(rows, -1), queries), dim=1)
    options: Any = {"row_ids": range(2, 2 + rows), "codebook": CODEBOOK}
    expected = generate(student, complete, 12, sampling, **options)
    found = Engine(student).generate([prompt], queries, 12, sampling, **options)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("changes", [{}, {"qk_norm": True}, {"bias": False}])
@pytest.mark.parametrize("limit", [attention.MAX_SCORES, 1])
def test_logits_equal_those_without_a_cache(changes, limit, monkeypatch):
    monkeypatch.setattr(attention, "MAX_SCORES", limit)
    student = make(**changes)
    torch.manual_seed(1)
    prompt, rows = torch.randint(30, (1, 20)), torch.randint(30, (3, 28))
    with torch.inference_mode():
        prefix = student.make_kv_cache(1, 20)
        student.forward_hidden(prompt, prefix)
        cache = student.make_kv_cache(3, 48, prefix=prefix)
        found = [student(rows[:, a:b], cache) for a, b in ((0, 7), (7, 8), (8, 20), (20, 28))]
        expected = student(torch.cat((prompt.expand(3, -1), rows), dim=1))[:, 20:]
    assert torch.allclose(torch.cat(found, dim=1), expected, atol=1e-5)
    assert cache.length == 48 and prefix.length == 20


def test_prefix_is_computed_once_and_stored_once(student):
    engine = Engine(student)
    prompt, queries = torch.randint(30, (20,)), torch.randint(30, (5, 6))
    first = engine.generate([prompt], queries, 4)
    assert torch.equal(engine.generate([prompt], queries, 4), first) and engine.prefills == 1
    engine.generate([torch.flip(prompt, [0])], queries, 4)
    assert engine.prefills == 2
    cache = student.make_kv_cache(5, 30, prefix=next(iter(engine._prefixes.kept.values())))
    assert cache.buffer.shape[-2] == 10  # tokens after the prefix
    for number in range(10):
        engine.generate([torch.full((8,), number)], queries, 1)
    assert len(engine._prefixes.kept) == 4


def test_prefix_is_computed_again_when_weights_change(student):
    changed = make()
    engine = Engine(changed)
    prompt, queries = torch.randint(30, (20,)), torch.randint(30, (2, 6))
    before = engine.generate([prompt], queries, 8, SAMPLED)
    with torch.no_grad():
        torch.nn.init.normal_(changed.blocks[0].mlp.down.weight)
    after = engine.generate([prompt], queries, 8, SAMPLED)
    assert engine.prefills == 2 and not torch.equal(after, before)
    assert torch.equal(after, Engine(changed).generate([prompt], queries, 8, SAMPLED))


def test_caches_have_the_dtype_of_autocast(student):
    engine = Engine(student)
    prompt, queries = torch.randint(30, (20,)), torch.randint(30, (2, 6))
    with torch.autocast("cpu", torch.bfloat16):
        engine.generate([prompt], queries, 4)
    found = engine.generate([prompt], queries, 4)
    assert torch.equal(found, Engine(student).generate([prompt], queries, 4))
    dtypes = [each.buffer.dtype for each in engine._prefixes.kept.values()]
    assert dtypes == [torch.bfloat16, torch.float32]


def test_student_without_such_a_cache_is_given_complete_rows(student):
    prompt, queries = torch.randint(30, (9,)), torch.randint(30, (2, 6))
    engine = Engine(WithoutCache(student).eval())
    assert torch.equal(
        engine.generate([prompt], queries, 5), Engine(student).generate([prompt], queries, 5)
    )


def test_student_made_in_inference_mode_can_be_prompted(student):
    with torch.inference_mode():
        made = make()
    prompt, queries = torch.randint(30, (9,)), torch.randint(30, (2, 6))
    found = Engine(made).generate([prompt], queries, 5)
    assert torch.equal(found, Engine(student).generate([prompt], queries, 5))


def test_context_is_checked_before_the_prompt_is_computed(student):
    engine = Engine(student)
    with pytest.raises(ValueError, match="49 tokens exceed max_seq_len 48"):
        engine.generate([torch.zeros(40, dtype=torch.int64)], torch.zeros(1, 6).long(), 3)
    assert engine.prefills == 0


def test_prompts_of_different_lengths_are_answered_as_one_by_one(student):
    torch.manual_seed(2)
    prompts = [torch.randint(30, (length,)) for length in (12, 6, 12, 0, 6)]
    queries = torch.randint(30, (5, 6))
    options: Any = {"row_ids": range(5), "codebook": CODEBOOK}
    engine = Engine(student)
    together = engine.generate_each([prompts], queries, 8, SAMPLED, batch_size=2, **options)
    for row, prompt in enumerate(prompts):
        alone = engine.generate([prompt], queries[row : row + 1], 8, SAMPLED, row_ids=[row])
        assert torch.equal(together[row], alone[0])


def slow_vote(student, prompts, query, count, guidance):
    """Greedy tokens of an ensemble, without a cache."""
    ids = query
    for _ in range(count):
        rows = [torch.cat((prompt, ids))[None] for prompt in prompts]
        scores = [student(row)[0, -1].log_softmax(-1) for row in rows]
        mean = sum(scores) / len(scores)
        base = student(ids[None])[0, -1].log_softmax(-1)
        ids = torch.cat((ids, (base + guidance * (mean - base)).argmax()[None]))
    return ids[len(query) :]


@pytest.mark.parametrize("guidance", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("count", [1, 3])
def test_ensemble_and_guidance_equal_a_loop_without_cache(student, count, guidance):
    torch.manual_seed(3)
    prompts = [torch.randint(30, (6 * number,)) for number in range(1, count + 1)]
    queries = torch.randint(30, (4, 6))
    sampling = SamplingConfig("greedy", guidance=guidance)
    engine = Engine(student)
    found = engine.generate(prompts, queries, 8, sampling)
    each = engine.generate_each([[p] * 4 for p in prompts], queries, 8, sampling)
    with torch.inference_mode():
        slow = [slow_vote(student, prompts, query, 8, guidance) for query in queries]
    assert torch.equal(found, torch.stack(slow)) and torch.equal(each, found)
