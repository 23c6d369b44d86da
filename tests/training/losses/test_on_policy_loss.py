"""The loss of batches with sampled tokens, against sums that are computed by hand."""

import math

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
    OnPolicyLoss,
    SelectBy,
    TokenSelection,
    TopK,
    batch_sums,
    chunked,
)
from tests.training.losses.test_objectives import Batch, C, D, N, V

SAMPLED = torch.arange(N) % 3 == 1
TRUSTED = SAMPLED & (torch.arange(N) < 15)


class MixedBatch(Batch):
    """Every third token is sampled by the student, and the teacher is trusted on some of them."""

    @property
    def token_inputs(self):
        return (*super().token_inputs, SAMPLED, TRUSTED)

    def gradients(self, loss, compiled=False):
        """As of `Batch`, and divided as training does it."""
        hidden, head = self.hidden.clone().requires_grad_(), self.head.clone().requires_grad_()
        sums = batch_sums(
            loss, hidden, head, self.token_inputs, (self.teacher_head,), compiled=compiled
        )
        values = sums / loss.denominators(*self.token_inputs[1:])
        grads = torch.autograd.grad(values[0], (hidden, head, *loss.parameters()))
        return values.detach(), *grads


def kl(batch, t=1.0):
    """T^2 x KL(teacher || student) of each token, and both log-probabilities."""
    teacher = F.log_softmax(batch.teacher_hidden @ batch.teacher_head.T / t, -1)
    student = F.log_softmax(batch.hidden @ batch.head.T / t, -1)
    return t**2 * (teacher.exp() * (teacher - student)).sum(-1), teacher, student


def named(loss, values):
    return dict(zip(loss.metric_names, values.tolist(), strict=True))


def test_mixed_batch_is_the_sum_by_hand():
    """Cross-entropy of true tokens, divergence of true and of trusted ones, over all weights."""
    batch, t = MixedBatch(), 2.0
    loss = OnPolicyLoss(DistillationLoss(0.3, 0.7, t))
    values = named(loss, batch.gradients(loss)[0])
    divergence, *_ = kl(batch, t)
    ce = F.cross_entropy(batch.hidden @ batch.head.T, batch.targets, reduction="none")
    ce_sum = kd_sum = sampled_sum = trusted = 0.0
    for i in range(N):
        weight = batch.weights[i].item()
        if SAMPLED[i]:
            sampled_sum += weight * divergence[i].item() * bool(TRUSTED[i])
            trusted += weight * bool(TRUSTED[i])
        else:
            ce_sum += weight * ce[i].item()
            kd_sum += weight * divergence[i].item()
    true, sampled = batch.weights[~SAMPLED].sum().item(), batch.weights[SAMPLED].sum().item()
    total = 0.3 * ce_sum + 0.7 * (kd_sum + sampled_sum)
    assert values == pytest.approx(
        {
            "total_loss": total / (true + sampled), "loss": ce_sum / true, "kd": kd_sum / true,
            "on_policy_kd": sampled_sum / sampled, "on_policy_kept": trusted / sampled,
        }, rel=1e-5,
    )  # fmt: skip


def test_gradient_of_a_mixed_batch_is_that_of_the_plain_sum():
    batch = MixedBatch()
    loss = OnPolicyLoss(DistillationLoss(0.3, 0.7))
    hidden = batch.hidden.clone().requires_grad_()
    logits = hidden @ batch.head.T
    ce = F.cross_entropy(logits, batch.targets, reduction="none")
    teacher = F.log_softmax(batch.teacher_hidden @ batch.teacher_head.T, -1)
    divergence = F.kl_div(F.log_softmax(logits, -1), teacher, log_target=True, reduction="none")
    learned = ~SAMPLED | TRUSTED
    total = 0.3 * (ce * batch.weights)[~SAMPLED].sum()
    total = total + 0.7 * (divergence.sum(-1) * batch.weights)[learned].sum()
    (expected,) = torch.autograd.grad(total / batch.weights.sum(), hidden)
    found = batch.gradients(loss)[1]
    assert torch.allclose(found, expected, atol=1e-7)
    assert not found[SAMPLED & ~TRUSTED].any() and found[TRUSTED & (batch.weights > 0)].any()


def test_without_sampled_tokens_it_keeps_the_bits_of_the_other_loss(monkeypatch):
    monkeypatch.setattr(f"{__name__}.SAMPLED", torch.zeros(N, dtype=torch.bool))
    monkeypatch.setattr(f"{__name__}.TRUSTED", torch.zeros(N, dtype=torch.bool))
    selection = TokenSelection(SelectBy.gap, fraction=0.5)
    plain = DistillationLoss(0.3, 0.7, 2.0, "reverse", 0.1, 0.01, selection=selection)
    for before, after in zip(
        Batch().gradients(plain), MixedBatch().gradients(OnPolicyLoss(plain)), strict=True
    ):
        assert torch.equal(before.flatten()[:4], after.flatten()[:4])
        assert before.dim() == 1 or torch.equal(before, after)


SCORES = {
    SelectBy.entropy: lambda kl, teacher: -(teacher.exp() * teacher).sum(-1),
    SelectBy.confidence: lambda kl, teacher: teacher.amax(-1).exp(),
    SelectBy.gap: lambda kl, teacher: kl,
}


@pytest.mark.parametrize("by", SelectBy)
def test_threshold_of_sampled_tokens_is_of_these_alone(by):
    batch = MixedBatch()
    divergence, teacher, _ = kl(batch)
    score = SCORES[by](divergence, teacher)
    limit = score[TRUSTED].median().item()
    kept = TRUSTED & (score <= limit if by is SelectBy.entropy else score >= limit)
    loss = OnPolicyLoss(DistillationLoss(), TokenSelection(by, limit))
    values = named(loss, batch.gradients(loss)[0])
    sampled = batch.weights[SAMPLED].sum()
    assert values["on_policy_kept"] == pytest.approx((batch.weights[kept].sum() / sampled).item())
    expected = ((divergence * batch.weights)[kept].sum() / sampled).item()
    assert values["on_policy_kd"] == pytest.approx(expected, rel=1e-5)
    every = OnPolicyLoss(DistillationLoss())
    assert values["kd"] == named(every, batch.gradients(every)[0])["kd"]  # all true tokens count


def test_weights_by_the_teacher_of_sampled_tokens():
    batch = MixedBatch()
    divergence, teacher, _ = kl(batch)
    sampled, learned = batch.weights[SAMPLED].sum(), batch.weights * TRUSTED
    for by, score in (
        (SelectBy.confidence, teacher.amax(-1).exp()),
        (SelectBy.entropy, 1 + (teacher.exp() * teacher).sum(-1) / math.log(V)),
    ):
        loss = OnPolicyLoss(DistillationLoss(), TokenSelection(by))
        values = named(loss, batch.gradients(loss)[0])
        assert values["on_policy_kept"] == pytest.approx(((learned * score).sum() / sampled).item())
        expected = (learned * score * divergence).sum() / sampled
        assert values["on_policy_kd"] == pytest.approx(expected.item(), rel=1e-5)


def test_fractions_of_true_and_of_sampled_tokens_are_independent():
    batch = MixedBatch()
    batch.weights = torch.ones(N)
    gap, teacher, _ = kl(batch)
    confidence = teacher.amax(-1).exp()
    true = gap[~SAMPLED].sort(descending=True).values[: round(0.5 * int((~SAMPLED).sum()))]
    sampled = confidence.masked_fill(~TRUSTED, 0).argsort(descending=True)[:2]
    assert TRUSTED.sum() == 5  # of which two are 40%
    loss = OnPolicyLoss(
        DistillationLoss(selection=TokenSelection(SelectBy.gap, fraction=0.5)),
        TokenSelection(SelectBy.confidence, fraction=0.4),
    )
    values = named(loss, batch.gradients(loss)[0])
    assert values["kept"] == pytest.approx(len(true) / int((~SAMPLED).sum()))
    assert values["kd"] == pytest.approx((true.sum() / (~SAMPLED).sum()).item(), rel=1e-5)
    assert values["on_policy_kept"] == pytest.approx(2 / int(SAMPLED.sum()))
    expected = (gap[sampled].sum() / SAMPLED.sum()).item()
    assert values["on_policy_kd"] == pytest.approx(expected, rel=1e-5)


OBJECTIVES = {
    "plain": (lambda: DistillationLoss(0.3, 0.7, 2.0), lambda: None),
    "reverse_top_k": (
        lambda: DistillationLoss(direction=KLDirection.reverse, classes=TopK(3)),
        lambda: None,
    ),
    "sampled_fraction": (DistillationLoss, lambda: TokenSelection(SelectBy.gap, fraction=0.5)),
    "all": (
        lambda: DistillationLoss(
            0.3, 0.7, 2.0, divergence=JensenShannon(), classes=CodeClusters(3),
            selection=TokenSelection(SelectBy.gap, fraction=0.6), hidden=HiddenStateMatching(0.5),
        ),
        lambda: TokenSelection(SelectBy.entropy, fraction=0.5),
    ),
}  # fmt: skip


def plain(batch, loss):
    """As `MixedBatch.gradients`, with all logits at once and nothing written by hand."""
    hidden, head = batch.hidden.clone().requires_grad_(), batch.head.clone().requires_grad_()
    shared = (batch.teacher_head,)
    more = loss.batch_inputs(hidden.detach(), head.detach(), batch.token_inputs, shared)
    values = loss(hidden @ head.T, *batch.token_inputs, *shared, *more)
    if loss.loss.hidden is not None:
        added = loss.hidden_loss(hidden, *batch.token_inputs)
        values = torch.cat((values[:1] + added, values[1:], added[None]))
    values = values / loss.denominators(*batch.token_inputs[1:])
    grads = torch.autograd.grad(values[0], (hidden, head, *loss.parameters()))
    return values.detach(), *grads


@pytest.mark.parametrize("chunk_elements", [V, 5 * V, 1 << 20])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_chunks_of_a_mixed_batch_are_those_of_all_logits(name, chunk_elements, monkeypatch):
    monkeypatch.setitem(chunked.LOSS_CHUNK_ELEMENTS, "cpu", chunk_elements)
    batch = MixedBatch()
    make, selection = OBJECTIVES[name]
    loss = batch.connect(OnPolicyLoss(make(), selection()))
    for expected, actual in zip(plain(batch, loss), batch.gradients(loss), strict=True):
        assert torch.allclose(expected, actual, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_compiled_loss_of_a_mixed_batch_is_the_plain_one(name):
    batch = MixedBatch()
    make, selection = OBJECTIVES[name]
    loss = batch.connect(OnPolicyLoss(make(), selection()))
    for expected, actual in zip(
        batch.gradients(loss), batch.gradients(loss, compiled=True), strict=True
    ):
        assert torch.allclose(expected, actual, rtol=1e-5, atol=1e-6)


def test_hidden_states_of_sampled_tokens_are_not_matched():
    batch = MixedBatch()
    loss = batch.connect(OnPolicyLoss(DistillationLoss(hidden=HiddenStateMatching(0.5, "mse"))))
    assert loss.metric_names[-3:] == ("on_policy_kd", "on_policy_kept", "hidden")
    projected = batch.hidden @ loss.loss.hidden.projection.weight.T
    assert projected.shape == (N, D) and batch.hidden.shape == (N, C)
    distances = (projected - batch.teacher_hidden).square().mean(-1) * batch.weights
    expected = 0.5 * distances[~SAMPLED].sum() / batch.weights[~SAMPLED].sum()
    assert named(loss, batch.gradients(loss)[0])["hidden"] == pytest.approx(expected.item())


def test_values_of_a_batch_without_sampled_tokens_are_finite(monkeypatch):
    monkeypatch.setattr(f"{__name__}.SAMPLED", torch.zeros(N, dtype=torch.bool))
    monkeypatch.setattr(f"{__name__}.TRUSTED", torch.zeros(N, dtype=torch.bool))
    selection = TokenSelection(SelectBy.gap, fraction=0.5)
    loss = OnPolicyLoss(DistillationLoss(divergence=KLDivergence()), selection)
    values = named(loss, MixedBatch().gradients(loss)[0])
    assert values["on_policy_kd"] == values["on_policy_kept"] == 0 < values["total_loss"]
