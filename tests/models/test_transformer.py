"""The student equals the reference, its cache equals none, and its sizes are the paper's."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from delvm.models.transformer import Embedding, Init, Transformer, TransformerConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "internlm_hf"


def tiny(**changes: object) -> Transformer:
    torch.manual_seed(0)
    values: dict[str, object] = {
        "vocab_size": 40,
        "width": 32,
        "layers": 3,
        "heads": 4,
        "context": 24,
    }
    values |= {"codebook_dim": 8, "init": Init.ordinary}
    codebook = torch.randn(40, 8)
    return Transformer(TransformerConfig(**(values | changes)), codebook).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def golden() -> tuple[Transformer, dict[str, np.ndarray]]:
    """The reference's student, its weights renamed here, and what it computed."""
    config = TransformerConfig(256, 96, 4, 3, norm_eps=1e-6, embedding=Embedding.own)
    model = Transformer(config).eval()
    theirs = torch.load(GOLDEN / "pytorch_model.bin", weights_only=True)
    ours = {
        "embed.weight": theirs["model.embed_tokens.weight"],
        "norm.weight": theirs["model.norm.weight"],
        "head.weight": theirs["lm_head.weight"],
    }
    for i in range(config.layers):
        a, b = f"model.layers.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            qkv = [theirs[f"{a}self_attn.{x}_proj.{part}"] for x in "qkv"]
            ours[f"{b}attention.qkv.{part}"] = torch.cat(qkv)
            ours[f"{b}attention.out.{part}"] = theirs[f"{a}self_attn.o_proj.{part}"]
        for name in ("gate", "up", "down"):
            ours[f"{b}mlp.{name}.weight"] = theirs[f"{a}mlp.{name}_proj.weight"]
        ours[f"{b}norm1.weight"] = theirs[f"{a}input_layernorm.weight"]
        ours[f"{b}norm2.weight"] = theirs[f"{a}post_attention_layernorm.weight"]
    model.load_state_dict(ours)
    with np.load(GOLDEN / "golden.npz", allow_pickle=False) as file:
        return model, dict(file)


def test_logits_are_those_of_the_reference(golden):
    model, known = golden
    logits = model(torch.from_numpy(known["ids"])).detach().numpy()
    assert np.abs(logits - known["logits"]).max() < 1e-4


def test_cached_decoding_equals_the_whole_sequence():
    model = tiny()
    ids = torch.randint(0, 40, (2, 24))
    cache = model.new_cache(2)
    steps = [model(ids[:, :5], cache), model(ids[:, 5:11], cache)]
    steps += [model(ids[:, i : i + 1], cache) for i in range(11, 24)]
    assert torch.allclose(torch.cat(steps, 1), model(ids), atol=1e-5)


def test_no_token_sees_a_later_one():
    model = tiny()
    ids = torch.randint(0, 40, (1, 12))
    other = ids.clone()
    other[0, 8] = (other[0, 8] + 1) % 40
    a, b = model(ids), model(other)
    assert torch.equal(a[:, :8], b[:, :8])
    assert not torch.allclose(a[:, 8:], b[:, 8:])


def test_codebook_is_frozen_and_stored():
    model = tiny()
    assert "embed.codebook" in model.state_dict()
    assert all("codebook" not in name for name, _ in model.named_parameters())
    assert model.parameter_count() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("width", "heads", "millions"), [(1024, 8, 291.4), (2048, 16, 1147.9)], ids=["300m", "1b"]
)
def test_sizes_are_the_papers(width, heads, millions):
    with torch.device("meta"):
        model = Transformer(TransformerConfig(width=width, heads=heads))
    assert model.parameter_count() / 1e6 == pytest.approx(millions, abs=0.05)


def test_reference_init():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(64, 256, 4, 4, context=16, codebook_dim=32))
    for number, block in enumerate(model.blocks, start=1):
        deep = 0.006 / (2 * number) ** 0.5
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.006, rel=0.03)
        assert block.mlp.gate.weight.std().item() == pytest.approx(0.006, rel=0.03)
        assert block.attention.out.weight.std().item() == pytest.approx(deep, rel=0.03)
        assert block.mlp.up.weight.std().item() == pytest.approx(deep, rel=0.03)
        assert block.mlp.down.weight.std().item() == pytest.approx(0.0015, rel=0.03)
        assert block.attention.qkv.bias.abs().max() == 0
    assert model.head.weight.std().item() == pytest.approx(0.0052, rel=0.05)


def test_decay_is_on_matrices_alone():
    model = tiny()
    decayed, rest = model.parameter_groups(0.1)
    assert decayed["weight_decay"] == 0.1 and rest["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decayed["params"])
    assert all(p.ndim == 1 for p in rest["params"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tiny(heads=5), ["heads 5", "width 32"]),
        (lambda: tiny(vocab_size=41), ["40", "41"]),
        (lambda: tiny()(torch.zeros(1, 25, dtype=torch.int64)), ["25", "24"]),
    ],
)
def test_faults_name_both_values(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_the_compiled_network_has_the_plain_ones_gradients():
    """torch 2.13 has lost gradients of other networks in bfloat16, without an error."""
    torch.manual_seed(0)
    plain = tiny()
    compiled = copy.deepcopy(plain)
    compiled.compile()
    ids = torch.randint(0, plain.config.vocab_size, (2, 16))
    for model in (plain, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1]).float()
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for wanted, found in zip(plain.parameters(), compiled.parameters(), strict=True):
        if wanted.requires_grad:
            assert wanted.grad is not None and found.grad is not None
            assert (found.grad - wanted.grad).norm() < 0.05 * wanted.grad.norm()


def test_documents_are_read_one_at_a_time():
    """Packed in one row, each gives what it gives alone: they see nothing of each other."""
    torch.manual_seed(0)
    model = tiny().eval()
    lengths = ((3, 1, 4), (8,), (1, 7))
    ids = torch.randint(0, model.config.vocab_size, (3, 8))
    numbers = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
    packed = model(ids, documents=torch.stack(numbers))
    for row, sizes in enumerate(lengths):
        alone = [model(part[None])[0] for part in ids[row].split(sizes)]
        assert torch.allclose(packed[row], torch.cat(alone), atol=1e-5)
    assert not torch.allclose(packed[0], model(ids)[0], atol=1e-2)


def test_documents_and_a_cache_do_not_go_together():
    model = tiny()
    with pytest.raises(ValueError, match="cache"):
        model(torch.zeros(1, 2, dtype=torch.int64), model.new_cache(1), torch.zeros(1, 2))
