"""Model configs written under old names load, and a tokenizer's fingerprint does not change."""

import json

import delvm
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import SHIPPED_DIR
from delvm.interop.save import save_model
from delvm.models.attention import AttentionBackend
from delvm.models.token_space import TokenSpace
from delvm.models.transformer import Init, InputEmbedding, Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, PixelRange, VQGANConfig


def shipped_config(kind: str) -> dict:
    return json.loads((SHIPPED_DIR / "shapes" / kind / "config.json").read_text("utf-8"))


def test_shipped_fingerprint_is_unchanged():
    recorded = shipped_config("student")["tokenizer_fingerprint"]
    assert fingerprint(delvm.load_tokenizer("shapes")) == recorded == "d6a8620e8d7c2170"


def test_fingerprint_of_new_options_is_unchanged():
    # computed when the fields were called signed_pixels, normalize_codes and lone_attention
    tokenizer = delvm.load_tokenizer("shapes")
    tokenizer.config.pixel_range = PixelRange.signed
    tokenizer.config.use_l2_norm = tokenizer.config.attn_in_single_block_levels = True
    assert fingerprint(tokenizer) == "ebc3b7f1d2efefc2"


def test_student_config_loads_under_old_names(tmp_path):
    old = {"vocab_size": 12, "width": 8, "layers": 1, "heads": 2, "mlp_width": 24, "context": 5}
    old |= {"embedding": "own", "init": "ordinary", "attention": "blockwise"}
    metadata = {"format": "delvm-1", "kind": "student", "config": old, "space": {"codes": 10}}
    model = Transformer(TransformerConfig(12, 8, 1, 2, 24, 5, embedding=InputEmbedding.learned))
    save_model(model, tmp_path / "s")
    (tmp_path / "s" / "config.json").write_text(json.dumps(metadata))
    loaded = delvm.load_student(tmp_path / "s")
    config = loaded.config
    assert (config.vocab_size, config.dim, config.n_layers, config.n_heads) == (12, 8, 1, 2)
    assert (config.ffn_dim, config.max_seq_len) == (24, 5)
    assert (config.embedding, config.init) == (InputEmbedding.learned, Init.gpt2)
    assert config.attention is AttentionBackend.auto
    assert loaded.token_space == TokenSpace(10)


def test_tokenizer_config_loads_under_old_names(tmp_path):
    model = VQGAN(VQGANConfig(16, 3, 32, [1, 1], 1, [], True, 32, num_embeddings=20))
    save_model(model, tmp_path / "t")
    metadata = json.loads((tmp_path / "t" / "config.json").read_text())
    assert metadata["config"].pop("pixel_range") == "unit"
    assert metadata["config"].pop("use_l2_norm") is False
    assert metadata["config"].pop("attn_in_single_block_levels") is False
    metadata["config"] |= {"signed_pixels": True, "normalize_codes": True, "lone_attention": True}
    (tmp_path / "t" / "config.json").write_text(json.dumps(metadata))
    config = delvm.load_tokenizer(tmp_path / "t").config
    assert config.pixel_range is PixelRange.signed
    assert config.use_l2_norm is config.attn_in_single_block_levels is True
