"""The harness of the benchmarks; nothing here depends on how fast the machine is."""

import importlib
import json
import sys
from types import ModuleType

import pytest
import torch

from delvm.commands.app import compose
from delvm.configs.validate import config_errors
from delvm.errors import UserError
from experiments.bench import startup
from experiments.bench.harness import Row, added_memory, medians, merge, processes, table, take_step

runner = importlib.import_module("experiments.bench.__main__")

FAST = Row.compare("fast", 2.0, 8.0, goal="ratio <= 0.5", unit="s", note="a note")
SLOW = Row("slow", 3.0, None, None, "ours < 1", "s", "")
PLAIN = Row("plain", 12345.0, None, None, "", "records/s", "")


def test_rows_are_saved_with_seven_keys(tmp_path):
    merge(tmp_path / "bench.json", [FAST])
    (row,) = json.loads((tmp_path / "bench.json").read_text())
    assert list(row) == ["name", "ours", "peer", "ratio", "goal", "unit", "note"]
    assert row["ratio"] == 0.25


def test_verdicts():
    assert [row.verdict for row in (FAST, SLOW, PLAIN)] == ["met", "missed", "no goal"]
    assert Row("at", 1.0, None, None, "ours <= 1", "s", "").verdict == "met"
    assert Row("over", 2.0, 1.0, 2.0, "ratio >= 2.5", "s", "").verdict == "missed"


@pytest.mark.parametrize("goal", ["under 1", "ratio < 1", "ours < x"])
def test_invalid_goal_is_an_error(goal):
    with pytest.raises(ValueError, match="cannot be checked"):
        _ = Row("x", 1.0, None, None, goal, "s", "").verdict


def test_merge_replaces_rows_of_the_same_name(tmp_path):
    path = tmp_path / "bench.json"
    merge(path, [FAST, SLOW])
    faster = Row.compare("fast", 1.0, 8.0, unit="s", note="")
    rows = merge(path, [faster, PLAIN])
    assert [(row["name"], row["ours"]) for row in rows] == [
        ("fast", 1.0),
        ("slow", 3.0),
        ("plain", 12345.0),
    ]
    assert json.loads(path.read_text()) == rows
    assert [file.name for file in tmp_path.iterdir()] == ["bench.json"]


@pytest.mark.parametrize("text", ["not json", '{"a": 1}', "[1, 2]", '[{"ours": 1}]'])
def test_merge_refuses_files_without_rows(tmp_path, text):
    path = tmp_path / "bench.json"
    path.write_text(text)
    with pytest.raises(UserError, match="other data than benchmark rows"):
        merge(path, [FAST])
    assert path.read_text() == text


def test_table_shows_verdicts_and_notes():
    lines = table([FAST, SLOW, PLAIN]).splitlines()
    assert lines[0].split() == ["name", "ours", "peer", "ratio", "unit", "goal"]
    assert lines[1].endswith("met") and lines[2].endswith("missed") and lines[3].endswith("no goal")
    assert "12,345" in lines[3]
    assert lines[-1] == "fast: a note"
    assert runner.summary([FAST, SLOW, PLAIN]) == "1 of 2 goals met; missed: slow"


def test_timed_calls_are_interleaved():
    calls: list[str] = []
    result = medians({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=3)
    assert calls == ["a", "b"] * 4  # once to warm up, three times timed
    assert set(result) == {"a", "b"} and all(seconds >= 0 for seconds in result.values())


def test_benchmarks_are_listed_and_selected():
    known = runner.list_benchmarks()
    assert "startup" in known and "harness" not in known and "__main__" not in known
    assert runner.select([], known) == known
    assert runner.select(["only=startup"], known) == ["startup"]
    with pytest.raises(UserError, match="unknown benchmark 'startpu': did you mean 'startup'"):
        runner.select(["only=startpu"], known)
    with pytest.raises(UserError, match="only=NAME"):
        runner.select(["startup"], known)


def test_run_of_a_fake_benchmark(tmp_path, monkeypatch, capsys):
    fake = ModuleType("experiments.bench.fake")
    fake.rows = lambda: [FAST, PLAIN]
    monkeypatch.setitem(sys.modules, "experiments.bench.fake", fake)
    monkeypatch.setattr(runner, "list_benchmarks", lambda: ["fake"])
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "bench.json")
    assert runner.main(["only=fake"]) == 0
    out = capsys.readouterr().out
    assert "1 of 1 goals met" in out and str(tmp_path / "bench.json") in out
    assert len(json.loads((tmp_path / "bench.json").read_text())) == 2
    assert runner.main(["only=other"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_benchmark_has_rows():
    for name in runner.list_benchmarks():
        assert callable(importlib.import_module(f"experiments.bench.{name}").rows)


def test_encode_benchmark_writes_shards(tmp_path):
    from experiments.bench import encode
    from tests.data.corpus_makers import FakeTokenizer

    tokenizer = FakeTokenizer(size=16)
    job = encode.make_job(tmp_path, tokenizer, pairs=5, batch_size=2)
    threads = torch.get_num_threads()
    row = encode.overhead("x", "fake", job, tokenizer, repeats=1, pin=True)
    assert row.unit == "images/s" and "10 images of 16 px" in row.note and row.goal == ""
    assert torch.get_num_threads() == threads
    assert [path.name for path in (tmp_path / "t/train/deblur").iterdir()] == ["000000.tar"]
    assert tokenizer.batches[:6] == [4, 4, 2] * 2  # a shard's images, then the same count bare


@pytest.mark.slow
def test_loading_benchmark_streams(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    from experiments.bench import loading

    monkeypatch.setattr(loading, "LARGE", 256)
    monkeypatch.setattr(loading, "SIDE", 16)
    monkeypatch.setattr(loading, "IMAGE_BATCH", 4)
    loading.write_shards(tmp_path / "tokens", 256)
    loading.write_images(tmp_path / "images", 64)
    rows = [*loading.streaming_rates(tmp_path / "tokens")]
    rows.append(loading.streamed_images(tmp_path / "images", repeats=1))
    names = ["streaming_rate", "streaming_rate_disk", "streaming_rate_http", "streaming_images"]
    assert [row.name for row in rows] == names and all(row.ours > 0 and row.goal for row in rows)


def test_the_training_run_that_is_timed_fits_together(tmp_path):
    startup.write_shards(tmp_path / "tokens")
    assert config_errors("train", compose("train", startup.train_overrides(tmp_path))) == []


def test_speculative_benchmark_accepts_all_drafts_of_the_constructed_pair(monkeypatch):
    from delvm.models.transformer import TransformerConfig
    from experiments.bench import speculative

    config = TransformerConfig(32, 16, 4, 2, max_seq_len=64, codebook_dim=4)
    row = speculative.ceiling(config, 1, prompt_tokens=24, new_tokens=20)
    assert ", 100% accepted, 4 per cycle" in row.note and row.ratio == row.ours / row.peer
    student, draft = speculative.constructed_pair(config, 1, torch.float32)
    assert student.parameter_count() > draft.parameter_count()
    ids = torch.randint(32, (2, 9))
    assert torch.equal(student(ids), draft(ids))


def test_gpu_benchmark_without_a_gpu_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(runner, "RESULTS", tmp_path / "bench.json")
    assert runner.main(["only=gpu"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("gpu: no CUDA device is visible here") and "0 of 0 goals met" in out


def test_gpu_rows_of_small_models_on_the_cpu(tmp_path, monkeypatch, capsys):
    from delvm.models.transformer import TransformerConfig
    from experiments.bench import gpu
    from tests.commands.conftest import TINY_TOKENIZER

    device = torch.device("cpu")
    config = TransformerConfig(32, 16, 1, 2, max_seq_len=24, codebook_dim=4)
    found = [gpu.training("300m", config, device, 1e9, rows=2, repeats=1)]
    found += gpu.answers("300m", config, device, tokens=4, prompt_tokens=12, queries=2, repeats=1)
    found += gpu.tokenizer_rates(TINY_TOKENIZER, device, batch=2, repeats=1)
    found.append(gpu.encoding(device, TINY_TOKENIZER, pairs=3, batch_size=2))
    assert [row.name for row in found] == [
        "gpu_train_300m_sdpa",
        "gpu_answer_300m_eager_1",
        "gpu_answer_300m_eager_2",
        "gpu_encode_fp32",
        "gpu_decode_fp32",
        "gpu_encode_bf16",
        "gpu_decode_bf16",
        "gpu_encode_shards",
    ]
    assert all(row.ours > 0 for row in found) and found[1].peer == 2.1
    monkeypatch.setattr(gpu, "OUTPUTS", tmp_path)
    gpu.write_table("NVIDIA H100 80GB", found)
    text = (tmp_path / "bench_gpu_NVIDIA_H100_80GB.md").read_text()
    assert text.startswith("# NVIDIA H100 80GB\n") and "gpu_encode_shards" in text
    assert capsys.readouterr().out == f"gpu: table in {tmp_path}/bench_gpu_NVIDIA_H100_80GB.md\n"


def test_gpu_benchmark_continues_without_what_does_not_fit(capsys):
    from experiments.bench import gpu

    def too_large():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")

    assert gpu.attempt(too_large) == [] and gpu.attempt(lambda: [FAST]) == [FAST]
    assert capsys.readouterr().out == ("gpu: not measured: CUDA out of memory. Tried to allocate\n")


def test_the_sharded_run_that_is_timed_fits_together(tmp_path):
    from experiments.bench import gpu

    compile(gpu.VLLM, "vllm", "exec")
    startup.write_shards(tmp_path / "tokens")
    errors = config_errors("train", compose("train", gpu.sharded_words(tmp_path, "cpu")))
    assert errors == []


@pytest.mark.slow
def test_distillation_benchmark_of_small_networks():
    from delvm.models.transformer import TransformerConfig
    from experiments.bench import distillation

    student, teacher = (
        TransformerConfig(32, dim, 1, 2, max_seq_len=32, codebook_dim=4) for dim in (16, 32)
    )
    setting = distillation.Setting(student, teacher, 2, 32, 4, compiled=False)
    seconds = {name: distillation.build(name, setting)() for name in distillation.VARIANTS}
    rows = distillation.compare(setting, seconds, dict.fromkeys(distillation.VARIANTS, 10.0))
    assert [(row.name, row.goal) for row in rows] == [
        ("distillation_step", "ratio <= 1.1"),
        ("distillation_memory", "ratio <= 1.15"),
        ("distillation_offline_step", "ratio <= 1.1"),
        ("distillation_on_policy", ""),
    ]
    assert all(row.ours > 0 and row.peer > 0 for row in rows) and "2 x 32 tokens" in rows[0].note


def one_step():
    """Of a process of its own."""
    return lambda: 0.5


def fails():
    raise ValueError("cannot be built")


@pytest.mark.slow
def test_variants_take_steps_in_processes_of_their_own():
    with processes({"a": one_step}) as pools:
        assert pools["a"].apply(take_step) == 0.5 and pools["a"].apply(added_memory) >= 0
    with pytest.raises(ValueError, match="cannot be built"), processes({"a": fails}):
        pass
