"""Small models behind the endpoint, and a complete server in a process of its own."""

import base64
import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from delvm.inference.prompter import Prompter
from delvm.models.transformer import Init, Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN
from delvm.serving.limits import Limits
from delvm.serving.service import Service
from tests.commands.conftest import TINY_TOKENIZER


class Server(NamedTuple):
    """A server under test."""

    url: str
    process: psutil.Process
    folder: Path  # that it runs in


def noise(seed: int, size: tuple[int, int] = (20, 16)) -> Image.Image:
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def base64_png(image: Image.Image) -> str:
    return base64.b64encode(png(image)).decode()


def body(pairs: int = 2, **more: object) -> dict[str, object]:
    """The body of a request to /v1/answer."""
    listed = [
        {"input": base64_png(noise(2 * i)), "target": base64_png(noise(2 * i + 1))}
        for i in range(pairs)
    ]
    return {"pairs": listed, "query": base64_png(noise(99))} | more


def make_prompter(seed: int) -> Prompter:
    torch.manual_seed(0)
    tokenizer = VQGAN(TINY_TOKENIZER)
    torch.manual_seed(seed)
    config = TransformerConfig(32, 16, 1, 2, max_seq_len=40, codebook_dim=4, init=Init.gpt2)
    student = Transformer(config, tokenizer.codebook.detach())
    torch.nn.init.normal_(student.head.weight, std=0.5)
    return Prompter(tokenizer, student)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """Two untrained students of 2 x 2 tokens per image, whose context holds 4 pairs."""
    limits = Limits(max_upload_mb=1, max_pixels=10_000, max_queue=3, max_answers=2)
    found = Service({"first": make_prompter(1), "second": make_prompter(2)}, limits)
    yield found
    found.close()


@pytest.fixture(scope="session")
def server(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`delvm serve` with the shipped student under two names, on a free port."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "secret.txt").write_text("nobody may read this")
    words = ["port=0", "students.shapes=shapes", "students.again=shapes", "max_queue=8"]
    log = folder / "log.txt"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "delvm", "serve", *words],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
            stderr=file,
        )
    while not (found := re.search(r"page: (http://\S+)", log.read_text())):
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    yield Server(found[1], psutil.Process(process.pid), folder)
    process.terminate()
    assert process.wait(20) == 0, log.read_text()
    assert "Traceback" not in log.read_text(), log.read_text()
