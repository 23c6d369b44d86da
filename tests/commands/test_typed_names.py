"""Outputs named by dates and versions, which Hydra would read as numbers."""

import pytest

from delvm.commands import evaluate
from delvm.commands.app import compose


@pytest.mark.slow
def test_directories_are_named_by_dates_and_versions(delvm, weights, tmp_path):
    for name in ("2024_01_05", "1.10"):
        words = (f"checkpoint={weights / 'student'}", "format=llama", f"output_dir={name}")
        assert delvm("export", *words)[0] == 0
    assert {path.name for path in tmp_path.iterdir()} >= {"2024_01_05", "1.10"}


@pytest.mark.slow
def test_jobs_of_a_sweep_are_named_as_typed(delvm, monkeypatch):
    seen = []
    monkeypatch.setattr("delvm.commands.app.check", lambda verb, cfg: None)
    monkeypatch.setattr(evaluate, "run", lambda cfg: seen.append((cfg.tokenizer, cfg.output_dir)))
    assert delvm("evaluate", "-m", "tokenizer=1.1,1.10", "output_dir=2024_01_05")[0] == 0
    assert seen == [(name, f"2024_01_05/tokenizer={name}") for name in ("1.1", "1.10")]


@pytest.mark.slow
def test_prompts_are_named_as_typed():
    for word, expected in (
        ("prompt=2024_01_05", ["2024_01_05"]),
        ("prompt=[2024_01_05,1.10,7]", ["2024_01_05", "1.10", "7"]),
        ("prompt=true", ["true"]),
        ("prompt=null", []),
    ):
        assert compose("generate", [word]).prompts == expected
