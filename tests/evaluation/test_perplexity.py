"""Perplexity of the lines of an evaluation file of LVM: every mean by hand."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from delvm.data.image_io import to_tensor
from delvm.errors import UserError
from delvm.evaluation.perplexity import evaluate_perplexity
from delvm.models.transformer import Init, Transformer, TransformerConfig

SIDE = 16


@pytest.fixture
def student(tokenizer: Any) -> Transformer:
    torch.manual_seed(0)
    config = TransformerConfig(216, 32, 2, 4, max_seq_len=128, codebook_dim=3, init=Init.gpt2)
    model = Transformer(config, tokenizer.codebook).eval()
    for name, weight in model.named_parameters():
        if "attention" in name or "head" in name:
            torch.nn.init.normal_(weight, std=0.5)
    return model


def write_lines(folder: Path, *lines: tuple[int, int]) -> Path:
    """A line for each (inputs, targets), of random images."""
    rng, texts, number = np.random.default_rng(0), [], 0
    for inputs, targets in lines:
        names = []
        for _ in range(inputs + targets):
            number += 1
            names.append(f"{number}.png")
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / names[-1])
        texts.append(json.dumps({"input": names[:inputs], "target": names[inputs:]}))
    path = folder / "eval.jsonl"
    path.write_text("\n".join(texts) + "\n")
    return path


def test_means_are_those_of_lvm_and_of_all_tokens(
    tokenizer: Any, student: Transformer, tmp_path: Path
) -> None:
    path = write_lines(tmp_path, (3, 1), (2, 3), (1, 1))
    found = evaluate_perplexity(path, tokenizer, {"mine": student}, output_dir=tmp_path / "out")
    losses, sentences, images, hits, every = [], [], [], [], []
    for line in map(json.loads, path.read_text().splitlines()):
        names = line["input"] + line["target"]
        pixels = to_tensor([Image.open(tmp_path / name) for name in names])
        ids = tokenizer.encode(pixels).flatten()
        logits = student.head(student.forward_hidden(ids[None, :-1]))[0].float()
        nll = torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none").detach()
        # As LVM: the tokens of all targets, in the exponent of their mean, line by line.
        own = nll[len(line["input"]) * 16 - 1 :]
        losses.append(own)
        sentences.append(own.mean().exp())
        images += [one.mean().exp() for one in torch.split(own, 16)]
        hits.append((logits.argmax(-1) == ids[1:])[len(line["input"]) * 16 - 1 :].float())
        every.append(nll)
    mine = found["students"]["mine"]
    loss = float(torch.cat(losses).mean())
    expected = {
        "loss": loss,
        "perplexity": np.exp(loss),
        "accuracy": float(torch.cat(hits).mean()),
        "sentence_perplexity": float(torch.stack(sentences).mean()),
        "image_perplexity": float(torch.stack(images).mean()),
        "loss_all": float(torch.cat(every).mean()),
    }
    for name, value in expected.items():
        assert mine[name]["mean"] == pytest.approx(value, rel=1e-4), name
    assert len({round(mine[n]["mean"], 3) for n in mine if "perplexity" in n}) == 4
    assert mine["image_perplexity"]["n"] == 3  # lines are resampled, not images that depend
    assert mine["loss"]["low"] <= mine["loss"]["mean"] <= mine["loss"]["high"]
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == found
    with (tmp_path / "out/scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["images"] for row in rows] == ["1", "3", "1"]
    assert float(rows[1]["perplexity"]) == pytest.approx(float(sentences[1]), rel=1e-4)


def test_lines_that_cannot_be_measured_are_refused(
    tokenizer: Any, student: Transformer, tmp_path: Path
) -> None:
    options: Any = {"output_dir": tmp_path / "out"}
    path = write_lines(tmp_path, (2, 1), (1, 0))
    with pytest.raises(UserError, match="line 2 has no target"):
        evaluate_perplexity(path, tokenizer, {"mine": student}, **options)
    path = write_lines(tmp_path, (8, 1))
    with pytest.raises(UserError, match="9 images of a line are 144 tokens, .* 'mine' is 128"):
        evaluate_perplexity(path, tokenizer, {"mine": student}, **options)
    path.write_text(json.dumps({"input": ["../x.png"], "target": ["1.png"]}) + "\n")
    with pytest.raises(UserError, match="is not below"):
        evaluate_perplexity(path, tokenizer, {"mine": student}, **options)
    path.write_text("[1]\n")
    with pytest.raises(UserError, match="line 1"):
        evaluate_perplexity(path, tokenizer, {"mine": student}, **options)
    path.write_text(json.dumps({"input": ["1.png"], "target": ["none.png"]}) + "\n")
    with pytest.raises(UserError, match=r"none\.png"):
        evaluate_perplexity(path, tokenizer, {"mine": student}, **options)
    with pytest.raises(UserError, match="not found"):
        evaluate_perplexity(tmp_path / "no.jsonl", tokenizer, {"mine": student}, **options)
