"""The estimate of what encoding at the paper's scale takes."""

import numpy as np
import pytest

from delvm.data.shards.manifest import plan_images, plan_tokens
from delvm.data.shards.writer import write_tokens
from delvm.errors import UserError
from experiments.scale.estimate import LVM, PAPER, estimate, main, table


def test_estimate_of_the_papers_mixtures():
    made = estimate(PAPER, rate=1000, days=1)
    assert (made.images, made.tokens) == (520_000_000, 133_120_000_000)
    assert made.hours == pytest.approx(520e6 / 1000 / 3600) == pytest.approx(144.4, abs=0.1)
    assert made.workers == 7  # 6.02 days of one
    assert estimate(PAPER, rate=1000, days=6.1).workers == 1
    lvm = estimate(LVM, rate=1000)
    assert lvm.tokens == pytest.approx(420e9, rel=0.01)  # as LVM reports
    assert lvm.image_bytes == 164 * 10**12


def test_token_bytes_equal_real_shards(tmp_path):
    pairs = plan_images("train", "derain", source="s", seed=0, image_size=256)
    plan = plan_tokens(pairs, 4096, tokens_per_image=256, vocab_size=8192, fingerprint="x")
    write_tokens(tmp_path, plan, lambda a, b: [np.zeros((b - a, 2, 256), np.int64)])
    size = sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))
    made = estimate({"derain": 2 * 4096}, rate=1)
    assert made.token_bytes == pytest.approx(size, rel=1e-6)


def test_table_states_its_units(capsys):
    text = table(rate=50, days=2)
    assert text.splitlines()[0].split("  ")[-1].strip() == "workers"
    (paper,) = (line for line in text.splitlines() if line.startswith("paper, all"))
    cells = ["520 M", "133.1 G", "269.1 GB", "52.0 TB", "2,888.9 h", "61"]
    assert paper.removeprefix("paper, all").split() == " ".join(cells).split()
    assert text.endswith("of 2 bytes per image") and "50 images/s per worker, 2 days" in text
    assert main(["rate=10"]) == 0 and "10 images/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("word", "message"),
    [("rat=1", "did you mean 'rate'"), ("rate=x", "is not a number"), ("days=0", "days=0 is not")],
)
def test_wrong_arguments(word, message, capsys):
    assert main([word]) == 2 and message in capsys.readouterr().err


def test_a_rate_must_be_one():
    with pytest.raises(UserError, match="rate=0 is not above 0"):
        estimate(PAPER, rate=0)
