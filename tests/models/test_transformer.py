"""The student: parity with DeLVM's code, KV cache, packing, initial weights and sizes."""

import copy
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from delvm.models.attention import AttentionBackend, PackedDocuments
from delvm.models.norm import RMSNorm
from delvm.models.transformer import Init, InputEmbedding, Transformer, TransformerConfig

GOLDEN = Path(__file__).parents[1] / "data" / "golden" / "internlm_hf"


def tiny(**changes: object) -> Transformer:
    torch.manual_seed(0)
    values: dict[str, object] = {
        "vocab_size": 40,
        "dim": 32,
        "n_layers": 3,
        "n_heads": 4,
        "max_seq_len": 24,
    }
    values |= {"codebook_dim": 8, "init": Init.gpt2}
    codebook = torch.randn(40, 8)
    return Transformer(TransformerConfig(**(values | changes)), codebook).eval()  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def golden() -> tuple[Transformer, dict[str, np.ndarray]]:
    """A student of DeLVM's code with renamed weights, and the logits of that code."""
    config = TransformerConfig(256, 96, 4, 3, norm_eps=1e-6, embedding=InputEmbedding.learned)
    model = Transformer(config).eval()
    hf = torch.load(GOLDEN / "pytorch_model.bin", weights_only=True)
    state = {
        "embed.weight": hf["model.embed_tokens.weight"],
        "norm.weight": hf["model.norm.weight"],
        "head.weight": hf["lm_head.weight"],
    }
    for i in range(config.n_layers):
        a, b = f"model.layers.{i}.", f"blocks.{i}."
        for part in ("weight", "bias"):
            qkv = [hf[f"{a}self_attn.{x}_proj.{part}"] for x in "qkv"]
            state[f"{b}attention.qkv.{part}"] = torch.cat(qkv)
            state[f"{b}attention.out.{part}"] = hf[f"{a}self_attn.o_proj.{part}"]
        for name in ("gate", "up", "down"):
            state[f"{b}mlp.{name}.weight"] = hf[f"{a}mlp.{name}_proj.weight"]
        state[f"{b}norm1.weight"] = hf[f"{a}input_layernorm.weight"]
        state[f"{b}norm2.weight"] = hf[f"{a}post_attention_layernorm.weight"]
    model.load_state_dict(state)
    with np.load(GOLDEN / "golden.npz", allow_pickle=False) as file:
        return model, dict(file)


def test_logits_equal_delvms(golden):
    model, expected = golden
    logits = model(torch.from_numpy(expected["ids"])).detach().numpy()
    assert np.abs(logits - expected["logits"]).max() < 1e-4


def test_cached_decoding_equals_full_forward():
    model = tiny()
    ids = torch.randint(0, 40, (2, 24))
    cache = model.make_kv_cache(2)
    steps = [model(ids[:, :5], cache), model(ids[:, 5:11], cache)]
    steps += [model(ids[:, i : i + 1], cache) for i in range(11, 24)]
    assert torch.allclose(torch.cat(steps, 1), model(ids), atol=1e-5)


def test_attention_is_causal():
    model = tiny()
    ids = torch.randint(0, 40, (1, 12))
    other = ids.clone()
    other[0, 8] = (other[0, 8] + 1) % 40
    a, b = model(ids), model(other)
    assert torch.equal(a[:, :8], b[:, :8])
    assert not torch.allclose(a[:, 8:], b[:, 8:])


def test_codebook_is_frozen_and_saved():
    model = tiny()
    assert "embed.codebook" in model.state_dict()
    assert all("codebook" not in name for name, _ in model.named_parameters())
    assert model.parameter_count() == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("dim", "n_heads", "millions"), [(1024, 8, 291.4), (2048, 16, 1147.9)], ids=["300m", "1b"]
)
def test_parameter_count_equals_paper(dim, n_heads, millions):
    with torch.device("meta"):
        model = Transformer(TransformerConfig(dim=dim, n_heads=n_heads))
    assert model.parameter_count() / 1e6 == pytest.approx(millions, abs=0.05)


def test_normal_init_scales_nothing():
    """LVM's: N(0, 0.02) for all matrices, which GPT-2's init divides by depth at the outputs."""
    stds = {}
    for init in (Init.normal, Init.gpt2):
        torch.manual_seed(0)
        cfg = TransformerConfig(64, 256, 4, 4, embedding=InputEmbedding.learned, init=init)
        named = Transformer(cfg).named_parameters()
        stds[init] = {name: each.std().item() for name, each in named if each.ndim == 2}
    assert set(stds[Init.normal]) > {"embed.weight", "head.weight", "blocks.3.mlp.down.weight"}
    assert [*stds[Init.normal].values()] == pytest.approx([0.02] * 22, rel=0.03)
    assert stds[Init.gpt2]["blocks.3.mlp.down.weight"] == pytest.approx(0.02 / 8**0.5, rel=0.03)


def test_reference_init_scales():
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(64, 256, 4, 4, max_seq_len=16, codebook_dim=32))
    for number, block in enumerate(model.blocks, start=1):
        scaled = 0.006 / (2 * number) ** 0.5
        assert block.attention.qkv.weight.std().item() == pytest.approx(0.006, rel=0.03)
        assert block.mlp.gate.weight.std().item() == pytest.approx(0.006, rel=0.03)
        assert block.attention.out.weight.std().item() == pytest.approx(scaled, rel=0.03)
        assert block.mlp.up.weight.std().item() == pytest.approx(scaled, rel=0.03)
        assert block.mlp.down.weight.std().item() == pytest.approx(0.0015, rel=0.03)
        assert block.attention.qkv.bias.abs().max() == 0
    assert model.head.weight.std().item() == pytest.approx(0.0052, rel=0.05)


@pytest.mark.parametrize("embedding", list(InputEmbedding))
def test_weight_decay_applies_to_matrices_only(embedding):
    model = tiny(embedding=embedding, qk_norm=True)
    decay, no_decay = model.parameter_groups(0.1)
    assert decay["weight_decay"] == 0.1 and no_decay["weight_decay"] == 0.0
    assert all(p.ndim >= 2 for p in decay["params"])
    assert all(p.ndim == 1 for p in no_decay["params"])
    for each in model.parameters():  # as a process may hold its shard
        each.data = each.data.flatten()
    assert len(next(model.parameter_groups(0.1))["params"]) == len(decay["params"])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: tiny(n_heads=5), ["n_heads 5", "dim 32"]),
        (lambda: tiny(vocab_size=41), ["40", "41"]),
        (lambda: tiny()(torch.zeros(1, 25, dtype=torch.int64)), ["25", "24"]),
    ],
)
def test_errors_name_both_values(call, words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="no C++ compiler")
def test_compiled_gradients_equal_eager():
    """torch 2.13 silently loses gradients of other compiled networks in bfloat16."""
    torch.manual_seed(0)
    eager = tiny()
    compiled = copy.deepcopy(eager)
    compiled.compile()
    ids = torch.randint(0, eager.vocab_size, (2, 16))
    for model in (eager, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1]).float()
        F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
    for expected, actual in zip(eager.parameters(), compiled.parameters(), strict=True):
        if expected.requires_grad:
            assert expected.grad is not None and actual.grad is not None
            assert (actual.grad - expected.grad).norm() < 0.05 * expected.grad.norm()


@pytest.mark.parametrize("embedding", list(InputEmbedding))
def test_deferred_init_equals_immediate_init(embedding):
    """One block at a time; a block has no storage before its turn."""
    config = TransformerConfig(40, 32, 3, 4, max_seq_len=8, codebook_dim=8, embedding=embedding)
    codebook = torch.randn(40, 8) if embedding is InputEmbedding.codebook else None
    torch.manual_seed(3)
    expected = Transformer(config, codebook).state_dict()
    torch.manual_seed(3)
    model = Transformer(config, codebook, defer_init=True)
    done = []
    for module in model.init_weights():
        done.append(module)
        storage = [not next(block.parameters()).is_meta for block in model.blocks]
        assert storage == [len(done) > index for index in range(3)]
    assert done == [*model.blocks, model]
    actual = model.state_dict()
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_packed_documents_equal_separate_documents():
    torch.manual_seed(0)
    model = tiny().eval()
    lengths = ((3, 1, 4), (8,), (1, 7))
    ids = torch.randint(0, model.vocab_size, (3, 8))
    document_ids = [torch.arange(len(row)).repeat_interleave(torch.tensor(row)) for row in lengths]
    packed = model(ids, document_ids=torch.stack(document_ids))
    for row, sizes in enumerate(lengths):
        alone = [model(document[None])[0] for document in ids[row].split(sizes)]
        assert torch.allclose(packed[row], torch.cat(alone), atol=1e-5)
    assert not torch.allclose(packed[0], model(ids)[0], atol=1e-3)


def test_documents_with_cache_are_refused():
    model = tiny()
    with pytest.raises(ValueError, match="cache"):
        model(torch.zeros(1, 2, dtype=torch.int64), model.make_kv_cache(1), torch.zeros(1, 2))


def gradients(model, ids, document_ids=None):
    """Logits, and the gradients of the sum of their squares, by name."""
    model.zero_grad()
    logits = model(ids, document_ids=document_ids)
    logits.square().sum().backward()
    return logits, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_activation_checkpointing_gives_equal_gradients(every, packed):
    model = tiny().train()
    ids = torch.randint(0, 40, (2, 9))
    document_ids = torch.arange(9).expand(2, -1) // 4 if packed else None
    logits, expected = gradients(model, ids, document_ids)
    model.config.activation_checkpointing = every
    calls = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))  # recomputation may end early
    again, actual = gradients(model, ids, document_ids)
    assert len(calls) == 3 + len(range(0, 3, every))  # three blocks, some of them twice
    assert torch.equal(logits, again)
    assert all(torch.allclose(expected[name], actual[name], atol=1e-6) for name in expected)


def test_tied_embedding_shares_head_weight():
    model = Transformer(
        TransformerConfig(40, 32, 2, 4, max_seq_len=8, embedding=InputEmbedding.tied)
    )
    assert model.parameter_count() == tiny(
        embedding=InputEmbedding.learned, n_layers=2
    ).parameter_count() - (40 * 32)
    _, grads = gradients(model, torch.randint(0, 40, (1, 4)))
    assert model.embed.weight is model.head.weight and grads["embed.weight"].abs().sum() > 0
    assert model.head.weight.std().item() == pytest.approx(0.0052, rel=0.1)


def test_qk_norm_is_invariant_to_scale():
    model = tiny(qk_norm=True)
    ids = torch.randint(0, 40, (1, 9))
    before = model(ids)
    with torch.no_grad():
        for block in model.blocks:
            block.attention.qkv.weight[:64] *= 100
            block.attention.qkv.bias[:64] *= 100
    assert torch.allclose(model(ids), before, atol=1e-4)


def test_drop_path_drops_rows_and_keeps_mean():
    block = tiny(drop_path=0.5).blocks[-1].train()
    branch = torch.ones(4000, 2, 3)
    kept = block._residual_dropout(branch)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    assert (kept.flatten(1).amin(1) == kept.flatten(1).amax(1)).all()
    assert kept.mean().item() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(block.eval()._residual_dropout(branch), branch)
    assert tiny(drop_path=0.5).blocks[0].drop_path_rate == 0


def test_xformers_is_refused_where_unavailable():
    model = tiny(attention=AttentionBackend.xformers)
    if not torch.cuda.is_available():
        with pytest.raises(
            ValueError, match="attention=xformers does not support cpu .* set attention=sdpa"
        ):
            model(torch.zeros(1, 4, dtype=torch.int64))


def test_packed_documents_seqlens_and_positions():
    document_ids = torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0], [3, 4, 5, 5, 5]])
    packed = PackedDocuments(document_ids)
    assert packed.seqlens == [2, 3, 5, 1, 1, 3]
    assert packed.positions.tolist() == [[0, 1, 0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 0, 1, 2]]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("packed", [False, True])
def test_xformers_equals_sdpa(packed):
    pytest.importorskip("xformers")
    models = [
        tiny(dim=256, attention=b).cuda().half()
        for b in (AttentionBackend.xformers, AttentionBackend.sdpa)
    ]
    models[1].load_state_dict(models[0].state_dict())
    ids = torch.randint(0, 40, (2, 16), device="cuda")
    document_ids = torch.arange(16, device="cuda").expand(2, -1) // 5 if packed else None
    actual, expected = (model(ids, document_ids=document_ids).float() for model in models)
    assert torch.allclose(actual, expected, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_keeps_input_dtype(dtype):
    torch.manual_seed(0)
    norm = RMSNorm(64, eps=1e-5)
    torch.nn.init.normal_(norm.weight)
    x = 3 * torch.randn(2, 5, 64)
    expected = x * norm.weight / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    with torch.autocast("cpu", torch.bfloat16):
        actual = norm(x.to(dtype))
    assert actual.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2**-6
    assert torch.allclose(actual.float(), expected, rtol=tolerance, atol=tolerance)


def test_load_codebook_sets_codebook_and_fingerprint():
    model = tiny()
    codebook = torch.randn(40, 8)
    model.load_codebook(codebook, "0123456789abcdef")
    assert torch.equal(model.embed.codebook, codebook)
    assert model.tokenizer_fingerprint == "0123456789abcdef"
    with pytest.raises(
        ValueError, match=r"codebook \(41, 8\) is not \(vocab_size 40, codebook_dim 8\)"
    ):
        model.load_codebook(torch.randn(41, 8), "f" * 16)
    assert model.tokenizer_fingerprint == "0123456789abcdef"


@pytest.mark.parametrize("embedding", [InputEmbedding.learned, InputEmbedding.tied])
def test_load_codebook_without_codebook_embedding(embedding):
    model = tiny(embedding=embedding)
    before = model.embed.weight.clone()
    model.load_codebook(torch.randn(7, 3), "0123456789abcdef")
    assert torch.equal(model.embed.weight, before)
    assert model.tokenizer_fingerprint == "0123456789abcdef"
