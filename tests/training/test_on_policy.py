"""Answers that a student samples in training: which, with which tokens, and which are trusted."""

import pytest
import torch
from torch import nn

from delvm.errors import UserError
from delvm.inference.engine import Engine
from delvm.inference.generation import uniform_values
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.training.modes import evaluation_mode, generation_mode
from delvm.training.on_policy import OnPolicy, find_answers, on_policy_errors
from delvm.training.strategies import DDP, FSDP1Strategy, FSDP2Strategy, HSDPStrategy

N, V, K, B = 4, 16, 6, 5  # tokens per image, codes, images, sentences


@pytest.fixture
def student():
    torch.manual_seed(0)
    cfg = TransformerConfig(V, 64, 2, 2, max_seq_len=K * N, codebook_dim=8, init="gpt2")
    net = Transformer(cfg, torch.randn(V, 8))
    for weight in net.parameters():  # distributions that are far from uniform
        weight.data.mul_(3)
    return net.eval()


def ids(seed=1):
    return torch.randint(0, V, (B, K * N), generator=torch.Generator().manual_seed(seed))


ALL = torch.tensor([[0, K - 1]] * B)  # answers of sentences of pairs


@torch.no_grad()
def naive(student, prompt, choose):
    """N tokens after a prompt (T,), each by a complete forward pass; ``choose(probs, i)``."""
    sentence = prompt
    for i in range(N):
        probs = student(sentence[None])[0, -1].softmax(-1)
        sentence = torch.cat((sentence, choose(probs, i).view(1)))
    return sentence[len(prompt) :]


def test_greedy_answers_are_those_of_complete_forward_passes(student):
    sentences = ids()
    sampled = OnPolicy(temperature=0).sample(Engine(student), sentences, ALL, N, B)
    assert sampled.num_sampled == B and sampled.seconds > 0
    for b in range(B):
        expected = naive(student, sentences[b, :-N], lambda probs, _: probs.argmax())
        assert torch.equal(sampled.input_ids[b, -N:], expected)
        assert torch.equal(sampled.input_ids[b, :-N], sentences[b, :-N])
    assert sampled.is_sampled[:, -N:].all() and not sampled.is_sampled[:, :-N].any()


def test_samples_are_those_of_complete_forward_passes(student):
    """With the same random numbers, at a temperature and with top-k."""
    sentences = ids()
    torch.manual_seed(3)
    sampled = OnPolicy(temperature=0.7, top_k=5).sample(Engine(student), sentences, ALL, N, B)
    torch.manual_seed(3)
    order = torch.randperm(B)
    uniform = uniform_values(range(B), N, int(torch.randint(2**31, ())))
    for row, b in enumerate(order.tolist()):

        def choose(probs, i, row=row):
            probs = (probs.log() / 0.7).softmax(-1)
            probs = probs.masked_fill(probs < probs.topk(5).values[-1], 0).double()
            cdf = (probs / probs.sum()).cumsum(0)
            return (cdf <= uniform[row, i]).sum()

        expected = naive(student, sentences[b, :-N], choose)
        assert torch.equal(sampled.input_ids[b, -N:], expected)


def test_samples_follow_the_generator_of_torch(student):
    samples = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        samples.append(OnPolicy().sample(Engine(student), ids(), ALL, N, 3))
    first, again, other = samples
    assert torch.equal(first.input_ids, again.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)
    assert all(int(each.is_sampled.any(1).sum()) == 3 for each in samples)


def test_without_answers_to_sample_the_generator_is_not_used(student):
    state = torch.get_rng_state()
    sentences = ids()
    sampled = OnPolicy(fraction=0.0).sample(Engine(student), sentences, ALL, N, 0)
    assert torch.equal(torch.get_rng_state(), state) and sampled.num_sampled == 0
    assert torch.equal(sampled.input_ids, sentences) and not sampled.is_sampled.any()


def test_sampled_tokens_are_usable_in_training(student):
    sampled = OnPolicy().sample(Engine(student), ids(), ALL, N, B)
    assert not sampled.input_ids.is_inference()
    student.forward_hidden(sampled.input_ids).sum().backward()


def test_a_kept_engine_sees_the_weights_of_each_step(student):
    """After an optimizer step it samples what a new engine does, also with a prompt it has read."""
    kept, sentences = Engine(student), ids()
    optimizer = torch.optim.SGD(student.parameters(), lr=1.0)
    sample = OnPolicy(temperature=0).sample
    prompt, queries = sentences[0, : 2 * N], sentences[:, -2 * N : -N]
    before = sample(kept, sentences, ALL, N, B).input_ids, kept.generate([prompt], queries, N)
    student.train()(sentences).square().sum().backward()
    optimizer.step()
    student.eval()
    after = sample(kept, sentences, ALL, N, B).input_ids, kept.generate([prompt], queries, N)
    new = Engine(student)
    expected = sample(new, sentences, ALL, N, B).input_ids, new.generate([prompt], queries, N)
    for old, found, fresh in zip(before, after, expected, strict=True):
        assert torch.equal(found, fresh) and not torch.equal(found, old)


class CountsCalls(nn.Module):
    """A student that counts the passes of its forward function."""

    def __init__(self, student):
        super().__init__()
        self.student, self.calls = student, 0
        self.head, self.max_seq_len = student.head, student.max_seq_len
        self.vocab_size, self.make_kv_cache = V, student.make_kv_cache

    def forward_hidden(self, *args, **kwargs):
        self.calls += 1
        return self.student.forward_hidden(*args, **kwargs)


def test_ranks_in_lockstep_call_the_student_equally_often(student):
    """As often without any answer as with some; ranks that fraction no weights need not."""
    counted = CountsCalls(student)
    none = torch.zeros_like(ALL)
    calls = {}
    for name, answers, count, lockstep in (
        ("some", ALL, 2, True), ("all", ALL, B, True), ("none", none, 2, True),
        ("free", none, 2, False), ("zero", ALL, 0, True),
    ):  # fmt: skip
        counted.calls = 0
        sampled = OnPolicy().sample(Engine(counted), ids(), answers, N, count, in_lockstep=lockstep)
        calls[name] = counted.calls
        assert sampled.num_sampled == (count if answers is ALL else 0)
    assert calls == {"some": N, "all": N, "none": N, "free": 0, "zero": 0}


def test_answers_of_packed_rows_are_sampled_from_their_own_documents(student):
    sentences = ids()
    answers = torch.tensor([[0, 1], [2, 3], [2, 5], [0, 0], [1, 4]])
    sampled = OnPolicy(temperature=0).sample(Engine(student), sentences, answers, N, B)
    assert sampled.num_sampled == 4
    for b, (first, answer) in enumerate(answers.tolist()):
        tokens = torch.zeros(K * N, dtype=torch.bool)
        if answer:
            tokens[answer * N : (answer + 1) * N] = True
            prompt = sentences[b, first * N : answer * N]
            expected = naive(student, prompt, lambda probs, _: probs.argmax())
            assert torch.equal(sampled.input_ids[b, tokens], expected)
        assert torch.equal(sampled.is_sampled[b], tokens)
        assert torch.equal(sampled.input_ids[b, ~tokens], sentences[b, ~tokens])


def test_answers_are_the_last_targets_that_have_a_prompt():
    documents = torch.tensor(
        [
            [0, 0, 0, 0, 0, 0],  # three pairs
            [0, 0, 2, 2, 2, 2],  # a pair, and two
            [0, 0, 2, 2, -1, -1],  # two pairs, and padding
            [0, 1, 2, 3, 4, 5],  # single images
            [0, 0, 0, 0, 4, 5],  # two pairs, and single images
            [0, 0, 0, 3, 3, 3],  # two clips
        ]
    )
    is_target = torch.tensor([[False, True] * 3] * 3 + [[True] * 6] * 3)
    is_target[4, ::2] = torch.tensor([False, False, True])
    expected = [[0, 5], [2, 5], [2, 3], [0, 0], [0, 3], [3, 5]]
    assert find_answers(documents, is_target).tolist() == expected
    one_image = torch.zeros(2, 1, dtype=torch.int64)
    assert find_answers(one_image, one_image == 0).tolist() == [[0, 0], [0, 0]]


def test_fraction_grows_over_the_ramp():
    on_policy = OnPolicy(0.6, start_fraction=0.2, start_step=10, ramp_steps=4)
    fractions = [on_policy.fraction_at(step) for step in (0, 9, 10, 11, 12, 13, 14, 1000)]
    assert fractions == pytest.approx([0, 0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.6])
    assert OnPolicy(0.25).fraction_at(0) == 0.25
    assert OnPolicy(0.0, start_fraction=1.0, ramp_steps=4).fraction_at(1) == 0.75


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("batch", [1, 3, 8, 10])
def test_counts_are_the_fraction_of_all_sentences_in_the_long_run(fraction, batch):
    on_policy = OnPolicy(fraction)
    counts = [on_policy.count(step, batch) for step in range(200)]
    assert sum(counts) / (200 * batch) == pytest.approx(fraction, abs=0.01 / batch)
    assert max(counts) - min(counts) <= 1
    if (fraction * batch).is_integer():
        assert set(counts) == {fraction * batch}


def test_the_teacher_is_trusted_up_to_a_token_that_is_foreign_to_it():
    """Tokens after the first one below the probability do not count; that one itself does."""
    is_sampled = torch.tensor([False, *[True] * 8, False])
    targets = torch.tensor([0, 1, 2, 0, 0, 1, 1, 1, 1, 2])
    probs = torch.full((10, 3), 0.5)
    probs[:, 1], probs[:, 2] = 0.495, 0.005  # so that 2 is foreign
    hidden, head = probs.log(), torch.eye(3)
    trusted = OnPolicy(min_teacher_prob=0.01).trusted(is_sampled, targets, N, hidden, head)
    assert trusted.nonzero().flatten().tolist() == [1, 2, 5, 6, 7, 8]
    trusted = OnPolicy(min_teacher_prob=0.001).trusted(is_sampled, targets, N, hidden, head)
    assert torch.equal(trusted, is_sampled)
    assert torch.equal(OnPolicy().trusted(is_sampled, targets, N, hidden, head), is_sampled)


def test_evaluation_mode_is_left_as_it_was_entered(student):
    student.train()
    student.blocks[0].eval()
    with pytest.raises(RuntimeError, match="broken"), evaluation_mode(student):
        assert not any(each.training for each in student.modules())
        raise RuntimeError("broken")
    assert student.training and not student.blocks[0].training and student.blocks[1].training


def test_under_autocast_a_copy_in_bfloat16_generates(student):
    """With the weights of now; and what is computed afterwards has the same gradients."""
    sentences, sample = ids(), OnPolicy(temperature=0).sample

    def gradients():
        student.train().zero_grad(set_to_none=True)
        student(sentences).float().square().mean().backward()
        return [each.grad.clone() for each in student.parameters()]

    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients()
        with generation_mode(student) as copy:
            assert copy is not student and copy.head.weight.dtype is torch.bfloat16
            assert not copy.training and not torch.is_autocast_enabled("cpu")
            sampled = sample(Engine(copy), sentences, ALL, N, B).input_ids
        assert student.training and torch.is_autocast_enabled("cpu")
        assert all(map(torch.equal, expected, gradients()))
        with torch.no_grad():
            student.head.weight.mul_(-1)
        with generation_mode(student) as copy:
            other = sample(Engine(copy), sentences, ALL, N, B).input_ids
    assert not torch.equal(sampled, other)
    student.head.weight.data.mul_(-1)
    with generation_mode(student.to(torch.bfloat16)) as itself:
        assert itself is student
        assert torch.equal(sample(Engine(student), sentences, ALL, N, B).input_ids, sampled)


def test_gradients_under_autocast_do_not_depend_on_generation_before(student):
    """Also where the network itself generates, with weights that autocast may keep."""
    sentences, found = ids(), []
    for generates in (False, True):
        student.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            if generates:
                OnPolicy().sample(Engine(student), sentences, ALL, N, B)
            student(sentences).float().square().mean().backward()
        found.append([each.grad.clone() for each in student.parameters()])
    assert all(map(torch.equal, *found))


@pytest.mark.slow
def test_compiled_blocks_are_not_compiled_for_sampling(student):
    for block in student.blocks:
        block.compile()
    torch._dynamo.utils.counters.clear()
    sample = OnPolicy(temperature=0).sample
    with evaluation_mode(student, is_compiled=True):
        sampled = sample(Engine(student), ids(), ALL, N, B)
    assert not torch._dynamo.utils.counters["stats"]
    student(ids())
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with evaluation_mode(student):
        assert torch.equal(sample(Engine(student), ids(), ALL, N, B).input_ids, sampled.input_ids)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"fraction": 1.5}, "fraction=1.5 is a fraction: set it from 0 to 1"),
        ({"start_fraction": -0.5}, "start_fraction=-0.5 is a fraction: set it from 0 to 1"),
        ({"ramp_steps": -1}, "ramp_steps=-1 is below 0: set it to 0 or more"),
        ({"start_step": -1}, "start_step=-1 is below 0: set it to 0 or more"),
        ({"min_teacher_prob": 2.0}, "min_teacher_prob=2.0 is a fraction: set it from 0 to 1"),
        ({"temperature": -1.0}, "temperature=-1.0 is below 0"),
        ({"temperature": 0.0, "top_k": 3}, "top_k=3 is for decoding=sample"),
        ({"top_p": 0.0}, r"top_p=0.0 is not in \(0, 1\]"),
    ],
)
def test_settings_out_of_range_are_errors(settings, error):
    (found,) = OnPolicy(**settings).validate()
    with pytest.raises(UserError, match=error):
        raise UserError(found)


def test_strategies_that_cannot_sample_are_errors():
    assert "set strategy=fsdp2" in on_policy_errors(FSDP1Strategy, False)[0]
    for strategy in (FSDP2Strategy, HSDPStrategy):
        assert "set data.packing=false" in on_policy_errors(strategy, True)[0]
        assert not on_policy_errors(strategy, False)
    assert not on_policy_errors(DDP, True) and not on_policy_errors(None, True)
    assert OnPolicy().validate() == []
