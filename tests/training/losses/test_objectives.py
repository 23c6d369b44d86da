"""Each objective of distillation in chunks, against plain computations on all logits."""

import pytest
import torch
import torch.nn.functional as F

from delvm.training.losses import (
    CodeClusters,
    DistillationLoss,
    HiddenStateMatching,
    JensenShannon,
    KLDirection,
    KLDivergence,
    SelectBy,
    TokenSelection,
    TopK,
    batch_sums,
    chunked,
    cross_entropy_sum,
    metric_names,
)

N, V, C, D = 23, 12, 16, 6  # tokens, vocabulary, student width, teacher width

OBJECTIVES = {
    "forward_kl": lambda: DistillationLoss(0.3, 0.7, 2.0),
    "reverse_kl": lambda: DistillationLoss(0.3, 0.7, 2.0, KLDirection.reverse),
    "skewed_kl": lambda: DistillationLoss(divergence=KLDivergence(0.1)),
    "skewed_reverse_kl": lambda: DistillationLoss(
        direction=KLDirection.reverse, divergence=KLDivergence(0.1)
    ),
    "jensen_shannon": lambda: DistillationLoss(divergence=JensenShannon(0.3), temperature=2.0),
    "top_k": lambda: DistillationLoss(classes=TopK(3)),
    "top_k_reverse": lambda: DistillationLoss(classes=TopK(3), direction=KLDirection.reverse),
    "clusters": lambda: DistillationLoss(classes=CodeClusters(3)),
    "entropy": lambda: DistillationLoss(selection=TokenSelection()),
    "entropy_threshold": lambda: DistillationLoss(selection=TokenSelection(threshold=2.0)),
    "confidence": lambda: DistillationLoss(selection=TokenSelection(SelectBy.confidence)),
    "confidence_threshold": lambda: DistillationLoss(
        selection=TokenSelection(SelectBy.confidence, threshold=0.5)
    ),
    "gap_threshold": lambda: DistillationLoss(selection=TokenSelection(SelectBy.gap, 1.0)),
    "gap_fraction": lambda: DistillationLoss(selection=TokenSelection(SelectBy.gap, fraction=0.4)),
    "entropy_fraction": lambda: DistillationLoss(selection=TokenSelection(fraction=0.4)),
    "all": lambda: DistillationLoss(
        divergence=JensenShannon(), classes=CodeClusters(3),
        selection=TokenSelection(SelectBy.gap, fraction=0.6), hidden=HiddenStateMatching(0.5),
    ),
}  # fmt: skip


class Batch:
    """Random hidden states, heads, targets and weights, some of which are 0."""

    def __init__(self):
        torch.manual_seed(0)
        self.hidden, self.head = torch.randn(N, C), torch.randn(V, C) / 2
        self.teacher_hidden, self.teacher_head = torch.randn(N, D), torch.randn(V, D)
        self.targets = torch.randint(0, V, (N,))
        self.weights = torch.rand(N) * (torch.arange(N) % 5 > 0)
        self.codebook = torch.randn(V, 4)

    @property
    def token_inputs(self):
        return self.targets, self.weights, self.teacher_hidden

    def connect(self, loss):
        loss.connect_codebook(self.codebook)
        torch.manual_seed(1)
        heads = (torch.nn.Linear(each, V, bias=False) for each in (C, D))
        loss.connect_networks(*(torch.nn.ModuleDict({"head": head}) for head in heads))
        return loss

    def gradients(self, loss, compiled=False):
        """The values of a loss per weight of tokens, and the gradients of all that is trained."""
        hidden, head = self.hidden.clone().requires_grad_(), self.head.clone().requires_grad_()
        sums = batch_sums(
            loss, hidden, head, self.token_inputs, (self.teacher_head,), compiled=compiled
        )
        values = sums / self.weights.sum()
        grads = torch.autograd.grad(values[0], (hidden, head, *loss.parameters()))
        return values.detach(), *grads


def plain(batch, loss):
    """As `Batch.gradients`, with all logits at once and nothing written by hand."""
    hidden, head = batch.hidden.clone().requires_grad_(), batch.head.clone().requires_grad_()
    logits = hidden @ head.T
    shared = (batch.teacher_head,)
    shared += (*loss.batch_inputs(logits.detach(), torch.eye(V), batch.token_inputs, shared),)
    inputs = (*batch.token_inputs, *shared)
    values = loss(logits, *inputs)
    if loss.hidden is not None:
        added = loss.hidden_loss(hidden, *batch.token_inputs)
        values = torch.cat((values[:1] + added, values[1:], added[None]))
    values = values / batch.weights.sum()
    grads = torch.autograd.grad(values[0], (hidden, head, *loss.parameters()))
    return values.detach(), *grads


@pytest.mark.parametrize("chunk_elements", [V, 5 * V, 1 << 20])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunks_of_an_objective_are_those_of_all_logits(name, chunk_elements, monkeypatch):
    """Values and all gradients to 1e-6, whatever the size of chunks."""
    monkeypatch.setitem(chunked.LOSS_CHUNK_ELEMENTS, "cpu", chunk_elements)
    batch = Batch()
    loss = batch.connect(OBJECTIVES[name]())
    assert len(metric_names(loss)) == len(batch.gradients(loss)[0])
    for expected, actual in zip(plain(batch, loss), batch.gradients(loss), strict=True):
        assert torch.allclose(expected, actual, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["skewed_kl", "top_k", "gap_threshold", "all"])
def test_a_compiled_objective_is_the_plain_one(name):
    batch = Batch()
    loss = batch.connect(OBJECTIVES[name]())
    for expected, actual in zip(
        batch.gradients(loss), batch.gradients(loss, compiled=True), strict=True
    ):
        assert torch.allclose(expected, actual, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_distillation_as_it_was_keeps_its_bits(direction):
    """The settings that there were first: the formula, and the order of its operations."""
    batch, t = Batch(), 2.0
    logits = batch.hidden @ batch.head.T
    student = F.log_softmax(logits / t, dim=-1)
    teacher = F.log_softmax(F.linear(batch.teacher_hidden, batch.teacher_head) / t, dim=-1)
    p, q = (student, teacher) if direction == "reverse" else (teacher, student)
    kd = (t**2 * (p.exp() * (p - q)).sum(-1) * batch.weights).sum()
    ce = cross_entropy_sum(logits, batch.targets, batch.weights, 0.1, 0.01)
    expected = torch.stack((0.3 * ce + 0.7 * kd, ce, kd))
    loss = DistillationLoss(0.3, 0.7, t, direction, 0.1, 0.01)
    assert torch.equal(loss(logits, *batch.token_inputs, batch.teacher_head), expected)
    assert not loss.state_dict()


@pytest.mark.parametrize("reverse", [False, True])
def test_direction_swaps_the_arguments_of_every_divergence(reverse):
    batch = Batch()
    calls = []

    def first(log_p, log_q):
        calls.append(log_p)
        return log_q.sum(-1)

    loss = DistillationLoss(direction="reverse" if reverse else "forward", divergence=first)
    logits = batch.hidden @ batch.head.T
    loss(logits, *batch.token_inputs, batch.teacher_head)
    assert torch.equal(calls[0], torch.log_softmax(logits, -1)) == reverse


class WeightsOfTheStudent:
    """A selection whose weights are a smooth function of the student's distribution."""

    fraction = None

    def scores(self, teacher, student):
        return student.amax(-1).exp()

    def __call__(self, teacher, student, threshold=None):
        return self.scores(teacher, student)


def test_gradients_of_the_student_do_not_flow_through_the_selection():
    batch = Batch()
    loss = DistillationLoss(selection=WeightsOfTheStudent())
    logits = (batch.hidden @ batch.head.T).requires_grad_()
    (grad,) = torch.autograd.grad(loss(logits, *batch.token_inputs, batch.teacher_head)[2], logits)
    pair = loss.log_probs(logits, batch.teacher_hidden, batch.teacher_head)
    weights = batch.weights * pair[1].detach().amax(-1).exp()
    expected = (KLDivergence()(*pair) * weights).sum()
    assert torch.allclose(grad, torch.autograd.grad(expected, logits)[0], atol=1e-6)


def test_top_k_of_a_teacher_that_knows_all_is_finite():
    loss = DistillationLoss(classes=TopK(2), direction="reverse")
    logits = torch.randn(1, V, requires_grad=True)
    sums = loss(
        logits, torch.zeros(1, dtype=torch.int64), torch.ones(1), 1000 * torch.ones(1, 1),
        torch.eye(V)[:, :1],
    )  # fmt: skip
    assert torch.autograd.grad(sums[0], logits)[0].isfinite().all()
