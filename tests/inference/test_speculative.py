"""A draft changes no deterministic answer and no distribution of samples."""

import itertools
from dataclasses import replace

import pytest
import torch

from delvm.errors import UserError
from delvm.inference import speculative
from delvm.inference.decoding import SamplingConfig
from delvm.inference.engine import Engine
from delvm.inference.generation import Rows
from delvm.inference.sampling import top_k_top_p_probs
from delvm.inference.speculative import PLAIN_STEPS, DraftTiming, Speculation
from delvm.models.transformer import Transformer, TransformerConfig
from tests.inference.test_engine import SAMPLED, make
from tests.inference.test_sampling import WithoutCache

PAYS = DraftTiming.pays
CODEBOOK = torch.randn(30, 8, generator=torch.Generator().manual_seed(0))


def noisy(student, noise, **changes):
    """A draft that often agrees with a student: its weights with noise."""
    draft = make(**changes)
    draft.load_state_dict(student.state_dict())
    torch.manual_seed(5)
    for parameter in draft.parameters():
        parameter.data += noise * parameter.data.std() * torch.randn_like(parameter)
    return draft


@pytest.fixture(scope="module")
def student():
    return make()


@pytest.fixture(autouse=True)
def always_draft(monkeypatch):
    monkeypatch.setattr(DraftTiming, "pays", lambda self: True)
    # As if the draft were much smaller than the student.
    monkeypatch.setattr("delvm.inference.engine.relative_cost", lambda *_: 0.1)


DETERMINISTIC = (SamplingConfig("greedy"), SamplingConfig("mean_embedding"))


@pytest.mark.parametrize("sampling", DETERMINISTIC, ids=lambda each: each.decoding)
@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(("noise", "draft_tokens"), [(0.0, 4), (0.3, 4), (0.3, 1), (3.0, 3)])
@pytest.mark.slow
def test_deterministic_tokens_are_those_of_the_student_alone(
    student, noise, draft_tokens, rows, sampling
):
    engine = Engine(student, draft=noisy(student, noise), draft_tokens=draft_tokens)
    for length in (20, 0, 13):
        torch.manual_seed(length)
        prompt, queries = torch.randint(30, (length,)), torch.randint(30, (rows, 6))
        for count in (22, 1, 2):  # 22 is all that the context holds
            expected = Engine(student).generate(
                [prompt], queries, count, sampling, codebook=CODEBOOK
            )
            found = engine.generate([prompt], queries, count, sampling, codebook=CODEBOOK)
            assert torch.equal(found, expected)
    counts = engine.speculation
    assert counts.tokens == 3 * rows * (21 + 1) and counts.accepted <= counts.drafted
    if not noise:
        assert counts.accepted == counts.drafted
    elif sampling.decoding == "greedy":
        assert (counts.accepted > 0.2 * counts.drafted) == (noise < 1)


@pytest.mark.parametrize("guidance", [1.0, 2.5])
@pytest.mark.parametrize("count", [1, 3])
def test_votes_and_guidance_are_those_of_the_student_alone(student, count, guidance):
    torch.manual_seed(3)
    prompts = [torch.randint(30, (6 * number,)) for number in range(1, count + 1)]
    queries, sampling = torch.randint(30, (4, 6)), SamplingConfig("greedy", guidance=guidance)
    engine = Engine(student, draft=noisy(student, 0.2))
    expected = Engine(student).generate(prompts, queries, 12, sampling)
    assert torch.equal(engine.generate(prompts, queries, 12, sampling), expected)
    each = engine.generate_each([[p] * 4 for p in prompts], queries, 12, sampling)
    assert torch.equal(each, expected) and engine.speculation.accepted > 4


@pytest.mark.parametrize("rows", [1, 3])
def test_tokens_of_a_student_that_cpus_decode_in_one_call(rows):
    sizes = {"dim": 64, "n_heads": 2}
    student = make(**sizes)
    draft = noisy(student, 0.1, **sizes)
    torch.manual_seed(6)
    prompt, queries = torch.randint(30, (20,)), torch.randint(30, (rows, 6))
    engine = Engine(student, draft=draft)
    expected = Engine(student).generate([prompt], queries, 22)
    assert torch.equal(engine.generate([prompt], queries, 22), expected)
    assert engine.speculation.accepted > 4


@pytest.mark.slow
def test_samples_do_not_depend_on_the_batch(student, monkeypatch):
    monkeypatch.setattr(speculative, "ASSUMED_CYCLES", 1)
    engine = Engine(student, draft=noisy(student, 0.5), draft_tokens=3)
    engine.relative_cost = 0.4  # at which some rows continue without the draft
    torch.manual_seed(1)
    prompt, queries = torch.randint(30, (20,)), torch.randint(30, (6, 6))
    together = engine.generate([prompt], queries, 22, SAMPLED)
    assert engine.speculation.fallbacks == 1 and engine.speculation.accepted
    for row in range(6):
        alone = engine.generate([prompt], queries[row : row + 1], 22, SAMPLED, row_ids=[row])
        assert torch.equal(alone[0], together[row])
    other = engine.generate([prompt], queries, 22, replace(SAMPLED, seed=4))
    assert not torch.equal(together, other)


def joint_probs(student, context, sampling, count):
    """Probabilities of all sequences of ``count`` tokens, in the order of `itertools.product`."""
    codes = student.vocab_size
    ids = torch.tensor(list(itertools.product(range(codes), repeat=count)))
    with torch.inference_mode():
        logits = student(torch.cat((context.expand(len(ids), -1), ids), dim=1))
    probs = torch.ones(len(ids), dtype=torch.float64)
    for step in range(count):
        options = sampling.temperature, sampling.top_k, sampling.top_p
        p = top_k_top_p_probs(logits[:, len(context) - 1 + step], *options).double()
        probs *= p.gather(1, ids[:, step : step + 1])[:, 0]
    return probs


def chi_square(sampling, draft_tokens=2, count=3, rows=8_000):
    """(p-value of joint samples, degrees of freedom, how many samples had probability 0)."""
    student, draft = five_codes(1), five_codes(2)
    context = torch.tensor([3, 1, 4, 1])
    engine = Engine(student, draft=draft, draft_tokens=draft_tokens)
    found = engine.generate([context[:2]], context[2:].expand(rows, -1), count, sampling)
    assert 0.2 < engine.speculation.accepted / engine.speculation.drafted < 0.9
    number = (found * 5 ** torch.arange(count - 1, -1, -1)).sum(1)
    observed = torch.bincount(number, minlength=5**count).double()
    expected = joint_probs(student, context, sampling, count) * rows
    impossible = int(observed[expected == 0].sum())
    common = expected >= 5
    rare = (observed[~common].sum(), expected[~common].sum())  # in one bin
    statistic = ((observed - expected)[common] ** 2 / expected[common]).sum()
    freedom = int(common.sum()) - 1
    if rare[1] >= 5:
        statistic, freedom = statistic + (rare[0] - rare[1]) ** 2 / rare[1], freedom + 1
    p_value = torch.special.gammaincc(torch.tensor(freedom / 2).double(), statistic / 2)
    return float(p_value), freedom, impossible


def five_codes(seed):
    """A student of 5 codes with random weights, whose probabilities are far from uniform."""
    torch.manual_seed(seed)
    student = Transformer(TransformerConfig(5, 16, 1, 2, codebook_dim=8, max_seq_len=16)).eval()
    for parameter in student.parameters():
        parameter.data = torch.randn_like(parameter) * 0.4
    torch.nn.init.normal_(student.embed.codebook)
    return student


SAMPLINGS = (
    SamplingConfig(temperature=1.0),
    SamplingConfig(temperature=0.7, top_k=4, seed=1),
    SamplingConfig(temperature=1.3, top_p=0.9, seed=2),
)


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("draft_tokens", [1, 2])
@pytest.mark.slow
def test_samples_have_the_distribution_of_the_student(sampling, draft_tokens):
    p_value, freedom, impossible = chi_square(sampling, draft_tokens)
    assert p_value > 1e-3 and impossible == 0 and freedom > 10


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_wrong_residual_is_found_by_the_chi_square_test(sampling, monkeypatch):
    monkeypatch.setattr(speculative, "residual", lambda p, q: p)
    p_value, _, _ = chi_square(sampling)
    assert p_value < 1e-9


def test_it_falls_back_where_drafting_takes_longer():
    timing = DraftTiming(5, plain=1.0, cycle=3.0)
    timing.cycles, timing.tokens = 16, 16 * 3.1
    assert PAYS(timing)
    timing.tokens = 16 * 2.9
    assert not PAYS(timing)
    timing.cycles = 15
    assert PAYS(timing)  # too early to say
    timing.cycle = 5.1
    assert not PAYS(timing)  # whatever is accepted
    timing.cycles = 2
    assert PAYS(timing)


@pytest.mark.parametrize("draft_tokens", [1, 4])
def test_samples_are_not_drafted_where_the_sizes_promise_no_gain(student, draft_tokens):
    engine = Engine(student, draft=student, draft_tokens=draft_tokens)
    engine.relative_cost = speculative.relative_cost(100, 120)  # a call costs as much as any
    assert engine.relative_cost == pytest.approx(1, abs=1e-5)
    torch.manual_seed(4)
    prompt, queries = torch.randint(30, (20,)), torch.randint(30, (3, 6))
    found = engine.generate([prompt], queries, 22, SAMPLED)
    assert torch.equal(found, Engine(student).generate([prompt], queries, 22, SAMPLED))
    assert engine.speculation.fallbacks == 1 and not engine.speculation.drafted


def test_a_row_stops_drafting_samples_after_some_that_were_not_accepted():
    assert speculative.expected_tokens(4) == pytest.approx((1 - 0.8**5) / 0.2)
    assert speculative.cycle_cost(4, 0.25) == 2
    assert speculative.relative_cost(2**27, 2**29) == pytest.approx(3 / 9)
    progress = speculative._Progress(torch.zeros(3), torch.zeros(3))
    stopped = []
    for _ in range(4):
        # Rows of 1, 2 and 3 tokens per cycle, at the cost of 2.
        progress.add(torch.full((3,), 4), torch.tensor([1, 2, 3]))
        stopped.append((~progress.pays(2.0, 4)).tolist())
    assert stopped == [[False] * 3, [False] * 3, [True, False, False], [True, False, False]]


def test_answers_are_the_same_while_it_falls_back(student, monkeypatch):
    engine = Engine(student, draft=noisy(student, 0.3))
    torch.manual_seed(4)
    prompt, queries = torch.randint(30, (20,)), torch.randint(30, (3, 6))
    expected = Engine(student).generate([prompt], queries, 22)
    monkeypatch.setattr(DraftTiming, "pays", lambda self: self.cycles < 2)
    assert torch.equal(engine.generate([prompt], queries, 22), expected)
    assert engine.speculation.fallbacks == 1 and engine.speculation.timings[3].cycles == 2
    calls = engine.speculation.teacher_calls
    assert torch.equal(engine.generate([prompt], queries, 22), expected)  # without any draft
    assert engine.speculation.fallbacks == 2 and engine.speculation.teacher_calls == calls


def test_single_tokens_are_timed_in_the_cache_of_an_engine_without_a_draft(student, monkeypatch):
    made = []
    monkeypatch.setattr(Rows, "make_static", lambda rows: made.append(rows))
    engine = Engine(student, draft=student)
    engine.generate([torch.randint(30, (20,))], torch.randint(30, (3, 6)), 1 + PLAIN_STEPS)
    assert engine.speculation.timings[3].plain_steps == PLAIN_STEPS and not made


def test_summary_is_one_line():
    counts = Speculation(drafted=40, accepted=30, tokens=44, teacher_calls=14, fallbacks=2)
    assert counts.summary() == (
        "draft: 75% of 40 drafted tokens accepted, 3.14 tokens per call of the student; "
        "2 batches continued without it, where it does not pay"
    )
    assert "; 1 batch continued" in Speculation(fallbacks=1).summary()
    assert Speculation().summary() == "draft: none of 0 drafted tokens accepted"


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        (lambda: make(max_seq_len=40), "context of 40 tokens is below the student's 48"),
        (lambda: five_codes(0), r"5 codes \(draft\) != 30 codes \(student\)"),
        (
            lambda: WithoutCache(make()).eval(),
            "draft WithoutCache has no key-value cache of ours",
        ),
    ],
)
def test_unsuitable_draft_is_refused(student, draft, message):
    with pytest.raises(UserError, match=message):
        Engine(student, draft=draft())


def test_draft_tokens_are_checked(student):
    with pytest.raises(UserError, match="draft_tokens=0 is below 1"):
        Engine(student, draft=student, draft_tokens=0)
