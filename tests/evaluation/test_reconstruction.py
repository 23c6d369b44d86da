"""A tokenizer evaluation: metrics against a direct computation, files, errors."""

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
from delvm.evaluation import evaluate_tokenizer, read_metrics
from delvm.evaluation.reconstruction import COLUMNS
from delvm.evaluation.scores.fid import ReconstructionFID


@pytest.fixture
def report(shards: Path, tokenizer: Any, tmp_path: Path) -> dict[str, Any]:
    return evaluate_tokenizer(shards, tokenizer, output_dir=tmp_path, num_queries=12, batch_size=5)


def test_metrics_match_direct_computation(
    report: dict[str, Any], shards: Path, tokenizer: Any
) -> None:
    pairs = list(islice(read_examples(shards, "test", "derain"), 12))
    pixels = to_tensor([pair.target for pair in pairs])
    ids = tokenizer.encode(pixels)
    errors = (tokenizer.decode(ids) - pixels).square().flatten(1).mean(1)
    found = report["tasks"]["derain"]["target"]
    assert found["psnr"]["mean"] == pytest.approx(float((-10 * errors.log10()).mean()), rel=1e-5)
    assert found["psnr"]["n"] == 12
    counts = torch.bincount(ids.flatten(), minlength=tokenizer.codebook_size)
    fraction = counts[counts > 0] / counts.sum()
    assert found["codes"]["num_used"] == len(fraction)
    assert found["codes"]["entropy_bits"] == pytest.approx(
        float(-(fraction * fraction.log2()).sum())
    )
    assert found["codes"]["bits_per_pixel"] == pytest.approx(np.log2(6**3) / 16)


def test_all_covers_every_image(report: dict[str, Any]) -> None:
    sides = [side for task in report["tasks"].values() for side in task.values()]
    assert len(sides) == 6 and report["all"]["psnr"]["n"] == 72
    mean = np.mean([side["psnr"]["mean"] for side in sides])
    assert report["all"]["psnr"]["mean"] == pytest.approx(mean)
    assert report["all"]["codes"]["num_tokens"] == sum(
        side["codes"]["num_tokens"] for side in sides
    )


def test_written_files(report: dict[str, Any], tmp_path: Path) -> None:
    assert json.loads((tmp_path / "metrics.json").read_text()) == report
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == COLUMNS and {len(row) for row in rows} == {len(COLUMNS)}
    table = {tuple(row[:3]): row[3] for row in rows[1:]}
    ssim = report["tasks"]["edges"]["input"]["ssim"]["mean"]
    assert float(table["edges", "input", "ssim"]) == pytest.approx(ssim)
    page = (tmp_path / "report.html").read_text()
    assert "http" not in page.split("<body>")[1] and page.count("<img") == 4
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "codes.png", "derain.png", "edges.png", "segmentation.png",
    }  # fmt: skip


class Means(nn.Module):
    """Features of an image: the mean of each channel."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean((2, 3))


@pytest.fixture
def fid_features(tmp_path: Path) -> Path:
    file = tmp_path / "means.pt"
    torch.jit.script(Means()).save(str(file))
    return file


def test_rfid_matches_direct_computation(fid_features: Path) -> None:
    torch.manual_seed(0)
    images, reconstructions = torch.rand(40, 3, 8, 8), torch.rand(40, 3, 8, 8) * 0.5
    rfid = ReconstructionFID(fid_features, 8)
    for start in range(0, 40, 16):
        rfid.update(images[start : start + 16], reconstructions[start : start + 16])
    a, b = (
        (pixels * 255 + 0.5).floor().mean((2, 3)).double().numpy()
        for pixels in (images, reconstructions)
    )
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(cov_a @ cov_b)).real.sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b) - 2 * root
    found = rfid.as_dict()
    assert found == {
        "value": pytest.approx(expected, rel=1e-6),
        "num_images": 40,
        "num_features": 3,
    }


def test_rfid_is_reported(shards: Path, tokenizer: Any, fid_features: Path, tmp_path: Path) -> None:
    found = evaluate_tokenizer(
        shards, tokenizer, output_dir=tmp_path / "r", num_queries=4, fid_features=fid_features
    )["rfid"]
    assert found["value"] > 0 and (found["num_images"], found["num_features"]) == (24, 3)
    assert "rFID" in (tmp_path / "r" / "report.html").read_text()


def test_invalid_fid_features_file_is_an_error(
    shards: Path, tokenizer: Any, tmp_path: Path
) -> None:
    for content, complaint in ((None, "not found"), (b"no script", "is not TorchScript")):
        file = tmp_path / "features.pt"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UserError, match=complaint):
            evaluate_tokenizer(
                shards, tokenizer, output_dir=tmp_path / "r", num_queries=4, fid_features=file
            )
    assert not (tmp_path / "r").exists()


def test_fid_features_of_wrong_shape(shards: Path, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "identity.pt"
    torch.jit.script(nn.Identity()).save(str(file))
    with pytest.raises(UserError, match=r"returns \(1, 3, 16, 16\), not features"):
        evaluate_tokenizer(
            shards, tokenizer, output_dir=tmp_path / "r", num_queries=4, fid_features=file
        )


def test_missing_task_or_wrong_size_is_an_error(
    shards: Path, tokenizer: Any, make_tokenizer: Any, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no task 'pose'"):
        evaluate_tokenizer(shards, tokenizer, output_dir=tmp_path, tasks=["pose"])
    with pytest.raises(
        UserError, match="num_queries=13, but test/derain holds 12 pairs: set num_queries=12"
    ):
        evaluate_tokenizer(shards, tokenizer, output_dir=tmp_path, num_queries=13)
    with pytest.raises(UserError, match=r"images of 16 px .* != resolution 32"):
        evaluate_tokenizer(shards, make_tokenizer(resolution=32), output_dir=tmp_path)


def test_metrics_of_an_earlier_version_are_read(report: dict[str, Any], tmp_path: Path) -> None:
    names = {
        "codebook_size": "codes",
        "num_tokens": "tokens",
        "num_used": "used",
        "most_frequent": "most",
        "most_frequent_fraction": "most_share",
    }
    old = json.loads(json.dumps(report))
    for side in [old["all"], *(side for task in old["tasks"].values() for side in task.values())]:
        side["codes"] = {names.get(key, key): value for key, value in side["codes"].items()}
    (tmp_path / "old.json").write_text(json.dumps(old))
    assert read_metrics(tmp_path / "old.json") == report
