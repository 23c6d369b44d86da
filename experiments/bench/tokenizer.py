"""Encoding with the f16 tokenizer of 8,192 codes at 256 px: images/s, fraction of peak, memory.

The peer is the naive implementation (fp32, NCHW, distance matrix, one-hot product) of the tests.
Ours is measured in fp32, where ids must be equal, and in bfloat16. Another memory format sums fp32
in another order, so a near tie between two codes may be decided differently: the row reports how
near. Weights are random; the codes are features of training photographs, so that the nearest-code
search is as ambiguous as with a trained codebook.
"""

import multiprocessing
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import delvm
from delvm.data.image_io import to_tensor
from delvm.data.sources.shapes.photographs import packaged_pool
from delvm.models.precision import has_native_bf16
from delvm.models.quantizer import VectorQuantizer
from delvm.models.vqgan import VQGAN, VQGANConfig
from delvm.tasks.metrics import psnr
from experiments.bench.harness import Row, medians
from tests.models.naive_vqgan import contiguous_copy, naive_encode, naive_search

BATCHES = (4, 16)
REPEATS = {4: 5, 16: 3}
GOALS = {"exact": "ratio >= 1.3", "fast": "ratio >= 2.4"}


def rows() -> list[Row]:
    """Speed at both batch sizes, fraction of peak, memory of the nearest-code search."""
    with torch.inference_mode():
        tokenizer = f16_8192()
        plain = contiguous_copy(tokenizer)
        pixels = crops("test", max(BATCHES), 256)
        with FlopCounterMode(display=False) as counter:
            tokenizer.encode_features(pixels[:1])
        gflop = counter.get_total_flops() / 1e9
        found: list[Row] = []
        rates: dict[tuple[str, int], float] = {}
        for batch in BATCHES:
            seconds = measure(tokenizer, plain, pixels[:batch], REPEATS[batch])
            rates |= {(name, batch): batch / each for name, each in seconds.items()}
            found += speed(batch, rates)
        found += agreement(tokenizer, plain, pixels)
        found += fraction_of_peak(rates, gflop)
    return [*found, memory()]


def crops(split: str, count: int, side: int) -> Tensor:
    """Pixels (count, 3, side, side) of photographs of a split."""
    rng = np.random.default_rng(0)
    images = [packaged_pool(split).crop(rng, side).round().astype(np.uint8) for _ in range(count)]
    return to_tensor(images)


def f16_8192() -> VQGAN:
    """DeLVM's architecture with random weights; the codebook consists of its own features."""
    torch.manual_seed(0)
    tokenizer = VQGAN(VQGANConfig()).eval()
    features = [
        tokenizer.encode_features(batch).flatten(0, 1) for batch in crops("train", 32, 256).split(4)
    ]
    tokenizer.quantize.embedding.weight.copy_(torch.cat(features))
    return tokenizer


@contextmanager
def bf16(tokenizer: VQGAN) -> Iterator[None]:
    """Compute in bfloat16 within the context."""
    tokenizer.bf16 = True
    try:
        yield
    finally:
        tokenizer.bf16 = False


def bf16_encode(tokenizer: VQGAN, pixels: Tensor) -> Tensor:
    """Ids (B, N), computed in bfloat16."""
    with bf16(tokenizer):
        return tokenizer.encode(pixels)


def measure(tokenizer: VQGAN, plain: VQGAN, pixels: Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of each variant, interleaved."""
    cases: dict[str, Callable[[], object]] = {
        "plain": lambda: naive_encode(plain, pixels),
        "exact": lambda: tokenizer.encode(pixels),
    }
    if has_native_bf16("cpu"):
        cases["fast"] = lambda: bf16_encode(tokenizer, pixels)
    return medians(cases, repeats)


def speed(batch: int, rates: dict[tuple[str, int], float]) -> list[Row]:
    """Images/s of each mode compared with the naive implementation."""
    threads = torch.get_num_threads()
    return [
        Row.compare(
            f"tokenizer_{name}_b{batch}",
            rates[name, batch],
            rates["plain", batch],
            goal=GOALS[name],
            unit="images/s",
            note=f"encode, f16_8192 at 256 px, {threads} threads, vs. the naive implementation",
        )
        for name in GOALS
        if (name, batch) in rates
    ]


def agreement(tokenizer: VQGAN, plain: VQGAN, pixels: Tensor) -> list[Row]:
    """How many ids each mode changes, and how much PSNR bfloat16 costs."""
    expected, _ = naive_encode(plain, pixels)
    ours = tokenizer.encode(pixels)
    differ = int((ours != expected).sum())
    note = f"how many of {expected.numel():,} ids differ from the naive implementation's"
    note_ties = note + ties(plain, pixels, ours, expected)
    found = [Row("tokenizer_exact_ids", differ, None, None, "ours <= 0", "ids", note_ties)]
    if has_native_bf16("cpu"):
        differ = int((bf16_encode(tokenizer, pixels) != expected).sum())
        shipped = delvm.load_tokenizer("shapes")
        small = crops("test", 256, 64)
        exact = psnr(shipped.decode(shipped.encode(small)), small).mean().item()
        with bf16(shipped):
            rounded = psnr(shipped.decode(shipped.encode(small)), small).mean().item()
        found += [
            Row("tokenizer_fast_ids", differ, None, None, "", "ids", note),
            Row(
                "tokenizer_fast_psnr",
                abs(rounded - exact),
                None,
                None,
                "ours < 0.1",
                "dB",
                f"change of the reconstruction PSNR of 256 held-out photographs, {exact:.2f} dB in "
                f"fp32, {rounded:.2f} dB in bfloat16, with the shipped (trained) tokenizer",
            ),
        ]
    return found


def ties(plain: VQGAN, pixels: Tensor, ours: Tensor, expected: Tensor) -> str:
    """Suffix of the note: how near, in float64, the two codes are where the ids differ."""
    exact, gaps = contiguous_copy(plain).double(), []
    for image, position in (ours != expected).nonzero().tolist():
        z = exact.encode_features(pixels[image, None].double())[0, position]
        codes = exact.codebook[torch.stack((ours[image, position], expected[image, position]))]
        near, far = (z - codes).square().sum(1).sort().values.tolist()
        gaps.append((far - near) / near)
    return f"; their distances differ by at most {max(gaps):.1e} (relative)" if gaps else ""


def fraction_of_peak(rates: dict[tuple[str, int], float], gflop: float) -> list[Row]:
    """GFLOP/s of each mode compared with the best that this machine reached in the same run."""
    found = []
    for name, dtype in (
        ("plain", torch.float32),
        ("exact", torch.float32),
        ("fast", torch.bfloat16),
    ):
        if (name, BATCHES[0]) not in rates:
            continue
        best = max(rates[name, batch] for batch in BATCHES) * gflop
        found.append(
            Row.compare(
                f"tokenizer_{name}_of_peak",
                best,
                peak(dtype),
                unit="GFLOP/s",
                note=f"{gflop:.1f} GFLOP per image; the peer is the faster of a matrix product and "
                f"a convolution in {str(dtype).removeprefix('torch.')}",
            )
        )
    return found


def peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a 4096 x 4096 matrix product or of a 3 x 3 convolution, whichever is faster."""
    a = torch.randn(4096, 4096, dtype=dtype)
    x = torch.randn(4, 256, 128, 128, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    seconds = medians({"gemm": lambda: a @ a, "conv": lambda: F.conv2d(x, w, padding=1)}, 5)
    flop = {"gemm": 2 * 4096**3, "conv": 2 * 4 * 128**2 * 256**2 * 9}
    return max(flop[name] / each for name, each in seconds.items()) / 1e9


def memory() -> Row:
    """Peak memory of the nearest-code search for 16 images, with a codebook 8 times as large."""
    vectors, codes = 16 * 256, 65_536
    ours, plain = (
        _in_new_process(variant, vectors, codes) - _in_new_process(variant, 8, codes)
        for variant in ("ours", "plain")
    )
    return Row.compare(
        "tokenizer_search_memory",
        max(ours, 0.0),
        plain,
        goal="ratio <= 0.1",
        unit="MiB",
        note="peak memory that searching 4,096 vectors among 65,536 codes adds to that of 8; one "
        f"matrix of all distances is {vectors * codes / 2**18:,.0f} MiB",
    )


def _in_new_process(variant: str, vectors: int, codes: int) -> float:
    """`_search_peak_memory` in a new process, since a peak never goes down."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_search_peak_memory, (variant, vectors, codes))


def _search_peak_memory(variant: str, vectors: int, codes: int) -> float:
    """Peak memory of a process that searches once, in MiB."""
    quantizer, z = VectorQuantizer(codes, 256), torch.randn(4096, 256)[:vectors]
    with torch.inference_mode():
        if variant == "ours":
            quantizer.nearest_code_indices(z)
        else:
            naive_search(z, quantizer.codebook)
    # Not getrusage, whose peak a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
