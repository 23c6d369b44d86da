"""Random orders of the tokens of an image: the orders, what the network computes, and runs."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from delvm.commands.instantiate import build_run
from delvm.errors import UserError
from delvm.interop.load import load_student
from delvm.models.attention import AttentionBackend
from delvm.models.transformer import Init, Transformer, TransformerConfig
from delvm.training.token_noise import ImageScope
from delvm.training.token_order import RandomTokenOrder
from tests.training.runs import N, V, curve, student_config, train

RANDOM = ("module/token_order=random", "module.input_weight=1.0")


def student():
    torch.manual_seed(0)
    config = TransformerConfig(
        20, 32, 3, 2, max_seq_len=16, codebook_dim=8, init=Init.gpt2,
        attention=AttentionBackend.sdpa,
    )  # fmt: skip
    model = Transformer(config, torch.randn(20, 8)).eval()
    for block in model.blocks:  # or attention would hardly depend on positions
        nn.init.normal_(block.attention.qkv.weight, std=0.4)
    return model


def connected(model, *args, **kwargs):
    order = RandomTokenOrder(*args, **kwargs)
    order.connect(model, N)
    nn.init.normal_(order.embed)
    return order


def test_orders_permute_within_target_images_alone():
    order = connected(student())
    is_target = (torch.arange(16) // N % 2 == 1).expand(300, -1)
    index = order.sample(is_target, 1.0)
    raster = torch.arange(16)
    assert torch.equal(index.sort(1).values, raster.expand(300, -1))
    assert torch.equal(index // N, (raster // N).expand(300, -1))
    assert torch.equal(index[:, ~is_target[0]], raster[~is_target[0]].expand(300, -1))
    found = index[:, is_target[0]].view(-1, N) % N
    shares = nn.functional.one_hot(found, N).float().mean(0)  # of each position at each turn
    torch.testing.assert_close(shares, torch.full((N, N), 1 / N), atol=0.06, rtol=0)
    assert torch.equal(order.sample(is_target, 0.0), raster.expand(300, -1))
    changed = order.sample(is_target, 0.5)[:, is_target[0]].view(-1, N) % N != torch.arange(N)
    assert changed.any(1).float().mean().item() == pytest.approx(0.5 * 23 / 24, abs=0.06)
    every = connected(student(), images=ImageScope.all).sample(is_target, 1.0)
    assert (every[:, ~is_target[0]] != raster[~is_target[0]]).any()


def test_probability_falls_from_start_to_end():
    order = RandomTokenOrder(0.2, 0.6)
    found = [order.probability(x) for x in (0, 0.2, 0.3, 0.4, 0.5, 0.6, 1)]
    assert found == pytest.approx([1, 1, 0.75, 0.5, 0.25, 0, 0])
    always, never, step = (RandomTokenOrder(*each) for each in ((1, 1), (0, 0), (0.5, 0.5)))
    assert [always.probability(x) for x in (0, 0.999)] == [1, 1] and never.probability(0) == 0
    assert [step.probability(x) for x in (0.49, 0.5)] == [1, 0]
    assert RandomTokenOrder(0.7, 0.6).validate() and not order.validate()


@pytest.mark.parametrize("packed", [False, True])
@torch.no_grad()
def test_likelihood_of_a_permuted_sentence_equals_a_mask_over_raster_order(packed):
    """Tokens stay in raster order; a mask lets each see those that come before it in its order."""
    model = student()
    order = connected(model, images=ImageScope.all)
    ids = torch.randint(20, (3, 16))
    documents = torch.arange(16).expand(3, -1) // 8 if packed else None
    index = order.sample(torch.ones(3, 16, dtype=torch.bool), 0.7)
    inputs = order.net_inputs(index, documents)
    permuted = ids.gather(1, index)
    hidden = model.forward_hidden(
        permuted[:, :-1], document_ids=None if documents is None else documents[:, :-1], **inputs
    )
    actual = model.head(hidden).log_softmax(-1).gather(-1, permuted[:, 1:, None])[..., 0]
    for row in range(3):
        sequence = index[row].tolist()
        rank = {place: turn for turn, place in enumerate(sequence)}
        mask, x = torch.zeros(16, 16, dtype=torch.bool), model.embed(ids[row])
        for place in range(16):
            for other in range(16):
                same = not packed or place // 8 == other // 8
                mask[place, other] = same and rank[other] <= rank[place]
        for before, after in zip(sequence[:-1], sequence[1:], strict=True):
            if after != before + 1:
                x[before] += order.embed[after % N]
        x, positions = x[None], torch.arange(16) % 8 if packed else torch.arange(16)
        for block in model.blocks:
            rope = model.rope[:, positions].unsqueeze(-2)
            x = block(x, rope, SimpleNamespace(mask=mask[None, None]))
        log_probs = model.head(model.norm(x))[0].log_softmax(-1)
        expected = [log_probs[a, ids[row, b]] for a, b in zip(sequence, sequence[1:], strict=False)]
        torch.testing.assert_close(actual[row], torch.stack(expected), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_raster_order_is_the_network_by_itself():
    model, ids = student(), torch.randint(20, (3, 16))
    order = connected(model)
    inputs = order.net_inputs(order.sample(torch.ones(3, 16, dtype=torch.bool), 0.0), None)
    assert not inputs["target_embed"].any()
    actual = model.forward_hidden(ids[:, :-1], **inputs)
    assert torch.equal(actual, model.forward_hidden(ids[:, :-1]))
    with pytest.raises(ValueError, match="cannot be combined with a cache"):
        model.forward_hidden(ids, model.make_kv_cache(3), positions=torch.arange(16))


def test_embeddings_learn_in_bfloat16_too():
    model = student().train()
    order = connected(model)
    inputs = order.net_inputs(order.sample(torch.ones(3, 16, dtype=torch.bool), 1.0), None)
    ids = torch.randint(20, (3, 15))
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.forward_hidden(ids, **inputs)
        assert hidden.dtype is model.forward_hidden(ids).dtype
    hidden.square().sum().backward()
    assert order.embed.grad.abs().amin(1).gt(0).all()


@pytest.mark.slow
def test_run_whose_orders_never_change_equals_one_without(tokens, tmp_path):
    never = ("module.token_order.start=0", "module.token_order.end=0")
    plain = train(student_config(tokens, 4, "module.input_weight=1.0"), tmp_path / "plain")
    same = train(student_config(tokens, 4, *RANDOM, *never), tmp_path / "same")
    a, b = (load_student(path).state_dict() for path in (plain, same))
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.slow
def test_orders_are_annealed_saved_resumed_and_not_exported(tokens, tmp_path):
    schedule = ("module.token_order.start=0.25", "module.token_order.end=0.75")
    whole = build_run(student_config(tokens, 8, *RANDOM, *schedule, f"output_dir={tmp_path / 'a'}"))
    weights = whole.fit()
    embed = whole.module.token_order.embed
    assert embed.shape == (N, 32) and embed.abs().sum(1).gt(0).all()
    expected = [1, 1, 1, 0.75, 0.5, 0.25, 0, 0]
    assert curve(tmp_path / "a", "train/permuted") == pytest.approx(expected)
    assert load_student(weights).vocab_size == V
    stop = "callbacks.stop_at_step.step=3"
    train(student_config(tokens, 8, *RANDOM, *schedule, stop), tmp_path / "b")
    resumed = build_run(
        student_config(tokens, 8, *RANDOM, *schedule, "resume=auto", f"output_dir={tmp_path / 'b'}")
    )
    resumed.fit()
    assert torch.equal(resumed.module.token_order.embed, embed)
    a, b = (run.module.model.state_dict() for run in (whole, resumed))
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert load_student(tmp_path / "b" / "checkpoints" / "last.ckpt").vocab_size == V
    with pytest.raises(UserError, match="another network than this run's .*token_order"):
        train(student_config(tokens, 8, "resume=auto"), tmp_path / "b")


@pytest.mark.slow
def test_permuted_images_of_packed_rows(tokens, tmp_path):
    packing = ("data.packing=true", "module.token_order.images=all", "module.token_noise=0.2")
    train(student_config(tokens, 2, *RANDOM, *packing), tmp_path)
    assert curve(tmp_path, "train/permuted")[0] == 1


@pytest.mark.slow
def test_networks_and_modules_without_orders_are_refused(tokens, tmp_path):
    class Plain(Transformer):
        def forward_hidden(self, input_ids, cache=None, document_ids=None):
            return super().forward_hidden(input_ids, cache, document_ids)

    with pytest.raises(UserError, match=r"Plain.forward_hidden takes no positions.*=none"):
        RandomTokenOrder().connect(Plain(TransformerConfig(20, 32, 1, 2)), N)
    with pytest.raises(UserError, match="module/token_order is a group of module=student"):
        student_config(tokens, 2, "module=distillation", "module/token_order=random")
