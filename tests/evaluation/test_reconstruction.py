"""An evaluation of a tokenizer: numbers against a plain computation, files, refusals."""

import csv
import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from delvm.data.image_io import to_tensor
from delvm.data.shards.reader import read_examples
from delvm.errors import UserError
from delvm.evaluation.fid import RFID
from delvm.evaluation.reconstruction import COLUMNS, run


@pytest.fixture
def measured(shards: Path, tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    return run(shards, tokenizer, output=tmp_path, queries=12, batch_size=5)


def test_numbers_are_those_of_the_pictures(
    measured: dict[str, Any], shards: Path, tokenizer: Any
) -> None:
    pairs = list(islice(read_examples(shards, "test", "derain"), 12))
    pixels = to_tensor([pair.target for pair in pairs])
    ids = tokenizer.encode(pixels)
    errors = (tokenizer.decode(ids) - pixels).square().flatten(1).mean(1)
    found = measured["tasks"]["derain"]["target"]
    assert found["psnr"]["mean"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-5)
    assert found["psnr"]["n"] == 12
    counts = torch.bincount(ids.flatten(), minlength=tokenizer.config.num_embeddings)
    share = counts[counts > 0] / counts.sum()
    assert found["codes"]["num_used"] == len(share)
    assert found["codes"]["entropy_bits"] == pytest.approx(float(-(share * share.log2()).sum()))
    assert found["codes"]["bits_per_pixel"] == pytest.approx(np.log2(6**3) / 16)


def test_all_is_over_every_picture(measured: dict[str, Any]) -> None:
    sides = [side for task in measured["tasks"].values() for side in task.values()]
    assert len(sides) == 6 and measured["all"]["psnr"]["n"] == 72
    mean = np.mean([side["psnr"]["mean"] for side in sides])
    assert measured["all"]["psnr"]["mean"] == pytest.approx(mean)
    assert measured["all"]["codes"]["num_tokens"] == sum(
        side["codes"]["num_tokens"] for side in sides
    )


def test_what_is_written(measured: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads((tmp_path / "metrics.json").read_text()) == measured
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == COLUMNS and {len(row) for row in rows} == {len(COLUMNS)}
    table = {tuple(row[:3]): row[3] for row in rows[1:]}
    ssim = measured["tasks"]["edges"]["input"]["ssim"]["mean"]
    assert float(table["edges", "input", "ssim"]) == pytest.approx(ssim)
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.split("<body>")[1] and page.count("<img") == 4
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "codes.png", "derain.png", "edges.png", "segmentation.png",
    }  # fmt: skip


class Means(nn.Module):
    """Features of a picture: the mean of each channel."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.float().mean((2, 3))


@pytest.fixture
def extractor(tmp_path: Path) -> Path:
    file = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(file))
    return file


def test_rfid_by_hand(extractor: Path) -> None:
    torch.manual_seed(0)
    true, drawn = torch.rand(40, 3, 8, 8), torch.rand(40, 3, 8, 8) * 0.5
    rfid = RFID(extractor, 8)
    for part in range(0, 40, 16):
        rfid.add(true[part : part + 16], drawn[part : part + 16])
    a, b = ((pixels * 255 + 0.5).floor().mean((2, 3)).double().numpy() for pixels in (true, drawn))
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * root
    found = rfid.as_dict()
    assert found == {"value": pytest.approx(expected, rel=1e-6), "pictures": 40, "features": 3}


def test_rfid_is_reported(shards: Path, tokenizer: Any, extractor: Path, tmp_path: Path) -> None:
    found = run(shards, tokenizer, output=tmp_path / "r", queries=4, extractor=extractor)["rfid"]
    assert found["value"] > 0 and (found["pictures"], found["features"]) == (24, 3)
    assert "rFID" in (tmp_path / "r" / "report.html").read_text()


def test_an_extractor_that_is_none(shards: Path, tokenizer: Any, tmp_path: Path) -> None:
    for content, complaint in ((None, "not found"), (b"no script", "is no TorchScript")):
        file = tmp_path / "extractor.pt"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            run(shards, tokenizer, output=tmp_path / "r", queries=4, extractor=file)
    assert not (tmp_path / "r").exists()


def test_an_extractor_that_gives_no_features(shards: Path, tokenizer: Any, tmp_path: Path) -> None:
    torch.jit.script(nn.Identity()).save(str(tmp_path / "same.pt"))
    with pytest.raises(UserError, match=r"gives \(1, 3, 16, 16\), not features"):
        run(shards, tokenizer, output=tmp_path / "r", queries=4, extractor=tmp_path / "same.pt")


def test_tasks_and_sizes_must_be_there(
    shards: Path, tokenizer: Any, make_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no task 'pose'"):
        run(shards, tokenizer, output=tmp_path, tasks=["pose"])
    with pytest.raises(
        UserError, match="queries=13, but test/derain holds 12 pairs: set queries=12"
    ):
        run(shards, tokenizer, output=tmp_path, queries=13)
    with pytest.raises(UserError, match=r"pictures of 16 px .* != resolution 32"):
        run(shards, make_tokenizer(resolution=32), output=tmp_path)
