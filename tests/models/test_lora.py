"""Low-rank adapters: what they compute, what is trained, and merging."""

import pytest
import torch
from torch import nn

from delvm.errors import UserError
from delvm.interop.load import load_student
from delvm.interop.save import save_model
from delvm.models.lora import LoRA, LoRALinear, merge_adapters
from delvm.models.transformer import Init, Transformer, TransformerConfig


def adapted(**settings):
    torch.manual_seed(0)
    config = TransformerConfig(40, 32, 2, 4, max_seq_len=24, codebook_dim=8, init=Init.gpt2)
    student = Transformer(config, torch.randn(40, 8)).eval()
    plain = {name: each.clone() for name, each in student.state_dict().items()}
    LoRA(**settings).attach(student)
    return student, plain


def with_random_adapters(**settings):
    student, plain = adapted(**settings)
    for module in student.modules():
        if isinstance(module, LoRALinear):
            nn.init.normal_(module.lora_b, std=0.2)
    return student, plain


@torch.no_grad()
def test_an_untrained_adapter_changes_nothing():
    student, plain = adapted()
    ids = torch.randint(40, (2, 9))
    logits = student(ids)
    other = Transformer(student.config)
    other.load_state_dict(plain)
    assert torch.equal(logits, other.eval()(ids))
    merged = merge_adapters(student.state_dict())
    assert merged.keys() == plain.keys()
    assert all(torch.equal(merged[name], plain[name]) for name in plain)


@torch.no_grad()
def test_merged_weights_equal_the_adapter(tmp_path):
    student, plain = with_random_adapters(rank=3, alpha=6.0, layers=["qkv", "down"])
    ids = torch.randint(40, (2, 9))
    actual = student(ids)
    save_model(student, tmp_path / "student")
    merged = load_student(tmp_path / "student")
    torch.testing.assert_close(merged(ids), actual, atol=1e-6, rtol=1e-6)
    changed = {k for k, each in merged.state_dict().items() if not torch.equal(each, plain[k])}
    names = {"attention.qkv.weight", "mlp.down.weight"}
    assert changed == {f"blocks.{i}.{name}" for i in range(2) for name in names}
    expected = plain["blocks.1.mlp.down.weight"].clone()
    down = student.blocks[1].mlp.down
    for r in range(3):
        expected += 6.0 / 3 * torch.outer(down.lora_b[:, r], down.lora_a[r])
    torch.testing.assert_close(merged.blocks[1].mlp.down.weight, expected)


@torch.no_grad()
def test_generation_with_a_cache_reads_the_adapter():
    student, _ = with_random_adapters()
    ids = torch.randint(40, (2, 9))
    cache = student.make_kv_cache(2)
    parts = [student(ids[:, :6], cache), *(student(ids[:, i : i + 1], cache) for i in (6, 7, 8))]
    torch.testing.assert_close(torch.cat(parts, dim=1), student(ids), atol=1e-5, rtol=1e-5)


def test_only_adapters_are_trained():
    student, _ = adapted(rank=4)
    trained = {name for name, each in student.named_parameters() if each.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"lora_a", "lora_b"}
    dim, ffn = 32, student.config.resolved_ffn_dim
    per_block = 4 * ((dim + 3 * dim) + 2 * dim + 3 * (dim + ffn))
    groups = list(student.parameter_groups(0.1))
    assert sum(p.numel() for group in groups for p in group["params"]) == 2 * per_block
    student(torch.randint(40, (2, 9))).logsumexp(-1).sum().backward()
    grads = {name for name, each in student.named_parameters() if each.grad is not None}
    assert grads == trained


def test_initial_weights_depend_on_the_seed_alone():
    students = [adapted()[0] for _ in range(2)]
    a, b = (each.blocks[1].mlp.up.lora_a for each in students)
    assert torch.equal(a, b) and not torch.equal(a, students[0].blocks[0].mlp.up.lora_a)
    LoRA().attach(students[0])  # a second time
    assert type(students[0].blocks[0].mlp.up.weight) is nn.Parameter


def test_settings_and_layers_that_cannot_be():
    errors = LoRA(0, 0.0, []).validate()
    assert [each.partition("=")[0] for each in errors] == ["rank", "alpha", "layers"]
    with pytest.raises(UserError, match=r"layers=\['q', 'v'\]: .* the linear layers \['qkv', "):
        adapted(layers=["q", "v", "out"])
    with pytest.raises(UserError, match=r"the blocks of Linear have .* \[\]: .*adapter=none"):
        LoRA().attach(nn.Linear(2, 2))


def test_parts_of_an_adapter_that_do_not_fit_are_refused():
    student, _ = adapted()
    state = student.state_dict()
    name = "blocks.0.mlp.up"
    for part, wrong in (
        ("lora_a", torch.zeros(8, 31)),
        ("lora_b", torch.zeros(3)),
        ("lora_scale", torch.zeros(2)),
        ("weight", torch.zeros(3, 32)),
        ("lora_b", "no tensor"),
    ):
        with pytest.raises(UserError, match=f"adapter of {name} does not fit"):
            merge_adapters(state | {f"{name}.{part}": wrong})
    with pytest.raises(UserError, match="does not fit"):
        merge_adapters({k: v for k, v in state.items() if k != f"{name}.lora_b"})
