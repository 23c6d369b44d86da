"""Answers of an evaluation: which prompts they are generated from."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from delvm.evaluation.answers.store import concatenate
from delvm.evaluation.queries.query_set import QuerySet, build_query_set
from delvm.evaluation.scores.scoring import generate_answers, score_rows
from delvm.inference.decoding import SamplingConfig
from delvm.inference.engine import Engine
from delvm.models.transformer import Init, Transformer, TransformerConfig

SAMPLINGS = (
    SamplingConfig("greedy"),
    SamplingConfig("greedy", guidance=2.0),
    SamplingConfig(temperature=1.0, seed=5),
)


@pytest.fixture(scope="module")
def student() -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(216, 32, 2, 4, max_seq_len=128, codebook_dim=3, init=Init.gpt2)
    model = Transformer(config, torch.randn(216, 3)).eval()
    for name, weight in model.named_parameters():
        if "attention" in name or "head" in name:  # so large that answers depend on the prompt
            torch.nn.init.normal_(weight, std=0.5)
    return model


def build(shards: Path, tokenizer: Any, **options: Any) -> QuerySet:
    options = {"num_queries": 5, "num_shots": 2, "seed": 0, "batch_size": 4} | options
    return build_query_set(shards, "derain", tokenizer, **options)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.slow
def test_all_prompts_of_a_query_vote_on_its_answer(shards, tokenizer, student, shared, sampling):
    query_set = build(shards, tokenizer, num_prompts=3, shared_prompt=shared)
    rows = slice(1, 5)
    found = generate_answers(Engine(student), tokenizer, query_set, rows, sampling)
    for row in range(1, 5):
        one = slice(row, row + 1)
        prompts = [query_set.prompts(one, number)[0] for number in range(3)]
        queries = query_set.queries.ids[one]
        alone = Engine(student).generate(prompts, queries, 16, sampling, row_ids=[row])
        assert torch.equal(found[row - 1], alone[0])
    first = Engine(student).generate(prompts[:1], queries, 16, sampling, row_ids=[row])
    assert not torch.equal(first, alone)  # the others count


def test_shared_prompts_are_computed_once(shards, tokenizer, student):
    engine = Engine(student, max_prefixes=2)
    query_set = build(shards, tokenizer, num_prompts=2, shared_prompt=True)
    options: Any = (tokenizer, {"a": engine}, SAMPLINGS[0], lambda count, name: None)

    def score(query_set: QuerySet) -> dict[str, Any]:
        batches = query_set.batches(2)
        rows = (score_rows(query_set, rows, query_set.mean_target(), *options) for rows in batches)
        return concatenate(rows).scores["student/a"]

    shared = score(query_set)
    assert engine.prefills == 2
    own = score(replace(query_set, shared=False))
    assert engine.prefills == 2
    for metric, values in own.items():
        assert values == pytest.approx(shared[metric])
