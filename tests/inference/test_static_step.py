"""The static decode step computes what the dynamic one does, eagerly and compiled."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from delvm.errors import UserError
from delvm.inference.decoding import SamplingConfig
from delvm.inference.engine import Engine
from delvm.inference.static_step import StaticStep
from delvm.models.static_cache import StaticKVCache
from tests.inference.test_engine import SAMPLED, make
from tests.inference.test_sampling import WithoutCache
from tests.inference.test_speculative import CODEBOOK, noisy

STEPS = 256


@pytest.fixture(scope="module")
def student():
    return make(max_seq_len=20 + 6 + STEPS)


def step_by_step(student, rows, prompt, step):
    """Logits (STEPS, B, C) of random tokens after a shared prompt (P,), or none, and 6 of a row."""
    torch.manual_seed(1)
    start, tokens = torch.randint(30, (rows, 6)), torch.randint(30, (STEPS, rows, 1))
    with torch.inference_mode():
        prefix = None
        if len(prompt):
            prefix = student.make_kv_cache(1, len(prompt))
            student.forward_hidden(prompt[None], prefix)
        cache = student.make_kv_cache(rows, len(prompt) + 6 + STEPS, prefix)
        student.forward_hidden(start, cache)
        if step is None:
            return torch.stack([student(each, cache)[:, -1] for each in tokens])
        step.begin()
        cache = step.take_over(cache)
        return torch.stack([step(student, each, cache)[:, -1] for each in tokens])


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("length", [0, 20])
@pytest.mark.slow
def test_logits_equal_those_of_the_dynamic_cache(student, rows, length):
    prompt, step = torch.randint(30, (length,)), StaticStep(compile=False)
    expected = step_by_step(student, rows, prompt, None)
    for _ in range(2):  # the second time in the caches of the first
        assert torch.allclose(step_by_step(student, rows, prompt, step), expected, atol=1e-5)
    assert len(step._kept) == 1


@pytest.mark.slow
def test_one_compiled_graph_serves_all_tokens_and_batches(student):
    from torch._dynamo.utils import counters

    prompt, step = torch.randint(30, (20,)), StaticStep()
    counters.clear()
    expected = step_by_step(student, 2, prompt, None)
    for _ in range(2):
        assert torch.allclose(step_by_step(student, 2, prompt, step), expected, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]


def test_rows_of_different_lengths_are_independent(student):
    torch.manual_seed(2)
    rows, lengths = torch.randint(30, (3, 12)), torch.tensor([6, 3, 9])
    with torch.inference_mode():
        source = student.make_kv_cache(3, 13)
        student.forward_hidden(rows, source)
        cache = StaticKVCache(source)
        cache.rewind(lengths)
        new = torch.randint(30, (3, 4))
        found = student(new, cache)
        for row, length in enumerate(lengths.tolist()):
            complete = torch.cat((rows[row, :length], new[row]))[None]
            assert torch.allclose(found[row], student(complete)[0, length:], atol=1e-5)
    assert cache.lengths.tolist() == [10, 7, 13]


@pytest.fixture
def eager(monkeypatch):
    """Engines with compile=true run the static step without compiling it."""
    monkeypatch.setattr("delvm.inference.engine.StaticStep", lambda: StaticStep(compile=False))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("with_draft", [False, True])
@pytest.mark.parametrize("sampling", [SamplingConfig("greedy", guidance=2.0), SAMPLED])
@pytest.mark.slow
def test_answers_are_those_of_the_dynamic_cache(student, sampling, with_draft):
    draft = noisy(student, 0.3, max_seq_len=student.max_seq_len) if with_draft else None
    engines = Engine(student, draft=draft), Engine(student, draft=draft, compile=True)
    torch.manual_seed(3)
    prompts = [torch.randint(30, (length,)) for length in (18, 12)]
    options: Any = {"codebook": CODEBOOK}
    for rows in (3, 1, 3):
        queries = torch.randint(30, (rows, 6))
        expected, found = (
            each.generate(prompts, queries, 20, sampling, **options) for each in engines
        )
        assert torch.equal(found, expected)


class HostReads(TorchDispatchMode):
    """Counts what a GPU would have to finish its queue for: values that Python reads."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().removeprefix("aten::").split(".")[0]
        self.count += name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("method", ["greedy", "mean_embedding", "sample"])
def test_no_token_waits_for_the_host(student, method, compile):
    sampling = SamplingConfig(method, *((1.0, 20, 0.9) if method == "sample" else ()))
    engine, reads = Engine(student, compile=compile), []
    prompt, queries = torch.randint(30, (20,)), torch.randint(30, (3, 6))
    for count in (2, 12):
        with HostReads() as mode:
            engine.generate([prompt], queries, count, sampling, codebook=CODEBOOK)
        reads.append(mode.count)
    assert reads == [0, 0]


@pytest.mark.usefixtures("eager")
def test_a_cycle_of_a_draft_waits_for_the_host_a_few_times(student, monkeypatch):
    monkeypatch.setattr("delvm.inference.speculative.DraftTiming.pays", lambda self: True)
    engine = Engine(student, draft=noisy(student, 0.3, max_seq_len=student.max_seq_len))
    with HostReads() as mode:
        engine.generate([torch.randint(30, (20,))], torch.randint(30, (3, 6)), 40)
    cycles = engine.speculation.timings[3].cycles
    assert 0 < mode.count <= 10 * (cycles + 4)  # most of them of counts on the CPU


@pytest.mark.slow
def test_student_without_a_cache_cannot_be_compiled(student):
    with pytest.raises(UserError, match="has no key-value cache of ours: set compile=false"):
        Engine(WithoutCache(student).eval(), compile=True)


def test_compile_is_an_option_of_the_verbs():
    from delvm.commands.app import compose

    assert compose("generate", ["prompt=a", "query=b", "compile=true"]).compile
    assert compose("evaluate", ["compile=true"]).compile and not compose("evaluate", []).compile
    video = compose("generate", ["video=a", "compile=true"])
    assert any("does not use compile=true" in error for error in video.validate())
