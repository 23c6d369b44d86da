"""`delvm inspect`, `delvm evaluate mode=tokenizer` and `delvm encode bf16=true`."""

import json
from pathlib import Path

import numpy as np
import pytest

from delvm.data.types import Example
from delvm.errors import CheckFailed
from delvm.interop import tokenizer_factory
from delvm.models.vqgan import VQGAN
from tests.data.shard_makers import write_examples


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Test pairs of 16 px."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 256, (6, 2, 16, 16, 3), dtype=np.uint8)
    made = [Example(f"{i}", "derain", tuple(both)) for i, both in enumerate(drawn)]
    write_examples(tmp_path / "pairs", "test", "derain", made, source="s", seed=0, image_size=16)
    return tmp_path / "pairs"


@pytest.mark.slow
def test_pairs_then_tokens(delvm, weights, pairs):
    code, out, _ = delvm("inspect", f"input_dir={pairs}", "output_dir=look")
    assert (code, out.splitlines()[0]) == (0, "test/derain: 6 examples in 1 shards")
    assert Path("look/test_derain.png").stat().st_size > 500
    tokenizer = f"tokenizer={weights / 'tokenizer'}"
    assert (
        delvm("encode", f"input_dir={pairs}", "output_dir=tokens", "splits=[test]", tokenizer)[0]
        == 0
    )
    code, out, err = delvm("inspect", "input_dir=tokens", "output_dir=look", tokenizer)
    assert "  inputs: " in out and "Traceback" not in err
    flags = json.loads(Path("look/inspect.json").read_text())["flags"]
    # An untrained tokenizer encodes all images alike, which is flagged.
    assert all("consist of a single code" in flag or "of the tokens" in flag for flag in flags)
    assert code == (3 if flags else 0)


@pytest.mark.slow
def test_a_sweep_keeps_the_exit_code(delvm, pairs, weights):
    delvm("encode", f"input_dir={pairs}", "output_dir=tokens", "splits=[test]",
          f"tokenizer={weights / 'tokenizer'}")  # fmt: skip
    code, _, err = delvm("inspect", "-m", "input_dir=tokens", "seed=0,1")
    assert code == 3 and "job 0: " in err


def test_what_is_flagged_ends_in_code_3(delvm, weights, pairs):
    delvm("encode", f"input_dir={pairs}", "output_dir=tokens", "splits=[test]",
          f"tokenizer={weights / 'tokenizer'}")  # fmt: skip
    code, out, err = delvm("inspect", "input_dir=tokens")  # with the tokenizer that ships
    assert code == CheckFailed.exit_code == 3
    assert "test/derain: 6 examples" in out and "encoded by tokenizer" in err
    assert "Traceback" not in err


def test_nothing_to_look_at(delvm, tmp_path):
    code, _, err = delvm("inspect", f"input_dir={tmp_path}")
    assert code == 2 and "no shards in" in err


def test_a_tokenizer_is_evaluated(delvm, weights, pairs):
    code, out, _ = delvm("evaluate", "mode=tokenizer", f"input_dir={pairs}", "output_dir=report",
                         f"tokenizer={weights / 'tokenizer'}", "num_queries=4")  # fmt: skip
    assert code == 0 and "report: report/report.html" in out
    report = json.loads(Path("report/metrics.json").read_text())
    assert report["all"]["psnr"]["n"] == 8 and report["tokenizer"]["origin"].endswith("tokenizer")
    (line,) = [line.split() for line in out.splitlines() if line.startswith("all ")]
    assert line[1] == f"{report['all']['psnr']['mean']:.4g}"
    assert line[-1] == f"{report['all']['codes']['num_used']:,}"


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.slow
def test_the_fast_mode_needs_hardware_for_it(delvm, weights, pairs, monkeypatch, there):
    monkeypatch.setattr(tokenizer_factory, "has_native_bf16", lambda device: there)
    modes = []
    plain = VQGAN.encode
    monkeypatch.setattr(
        VQGAN, "encode", lambda self, pixels: modes.append(self.bf16) or plain(self, pixels)
    )
    code, _, err = delvm("encode", f"input_dir={pairs}", "output_dir=tokens", "splits=[test]",
                         "bf16=true", f"tokenizer={weights / 'tokenizer'}")  # fmt: skip
    assert (code == 0) is there is Path("tokens/test/derain/manifest.json").exists()
    assert modes == [True] * there
    if there:  # what was made one way is not taken for the other
        manifest = json.loads(Path("tokens/test/derain/manifest.json").read_text())
        assert manifest["bf16"] is True
        code, _, err = delvm("encode", f"input_dir={pairs}", "output_dir=tokens", "splits=[test]",
                             f"tokenizer={weights / 'tokenizer'}")  # fmt: skip
        assert code == 2 and "was made with bf16=True, requested is bf16=False" in err
        return
    assert "bf16=true needs bfloat16, which this cpu lacks" in err
