"""Encoding with the f16 tokenizer of 8,192 codes at 256 px: images a second, share of peak, memory.

The peer is the plain path (fp32, NCHW, distance matrix, one-hot product) of the tests' oracle.
Ours is measured exact (fp32, ids must be the same) and fast (bfloat16). Float32 rounds otherwise in
another order of memory, so a tie in the last digits may fall to the other code: the row says how
near a tie it was. Weights are random; the
codes are features of training photographs, so that the search is as ambiguous as a real one.
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
from delvm.data.sources.shapes import photographs
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
    """Speed at both batch sizes, share of the peak, memory of the search."""
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
            found += speeds(batch, rates)
        found += agreement(tokenizer, plain, pixels)
        found += shares(rates, gflop)
    return [*found, memory()]


def crops(split: str, count: int, side: int) -> Tensor:
    """Pixels (count, 3, side, side) of photographs of a split."""
    rng = np.random.default_rng(0)
    drawn = [photographs.crop(rng, split, side).round().astype(np.uint8) for _ in range(count)]
    return to_tensor(drawn)


def f16_8192() -> VQGAN:
    """The reference's size, with codes within reach of its features."""
    torch.manual_seed(0)
    tokenizer = VQGAN(VQGANConfig()).eval()
    features = [
        tokenizer.encode_features(part).flatten(0, 1) for part in crops("train", 32, 256).split(4)
    ]
    tokenizer.quantize.embedding.weight.copy_(torch.cat(features))
    return tokenizer


@contextmanager
def fast(tokenizer: VQGAN) -> Iterator[None]:
    """The fast mode, for a while."""
    tokenizer.bf16 = True
    try:
        yield
    finally:
        tokenizer.bf16 = False


def fast_encode(tokenizer: VQGAN, pixels: Tensor) -> Tensor:
    """Ids (B, N) in the fast mode."""
    with fast(tokenizer):
        return tokenizer.encode(pixels)


def measure(tokenizer: VQGAN, plain: VQGAN, pixels: Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of each way, turn about."""
    cases: dict[str, Callable[[], object]] = {
        "plain": lambda: naive_encode(plain, pixels),
        "exact": lambda: tokenizer.encode(pixels),
    }
    if has_native_bf16("cpu"):
        cases["fast"] = lambda: fast_encode(tokenizer, pixels)
    return medians(cases, repeats)


def speeds(batch: int, rates: dict[tuple[str, int], float]) -> list[Row]:
    """Images a second of each mode beside the plain path."""
    threads = torch.get_num_threads()
    return [
        Row.compare(
            f"tokenizer_{name}_b{batch}",
            rates[name, batch],
            rates["plain", batch],
            goal=GOALS[name],
            unit="images/s",
            note=f"encode, f16_8192 at 256 px, {threads} threads, beside the plain path",
        )
        for name in GOALS
        if (name, batch) in rates
    ]


def agreement(tokenizer: VQGAN, plain: VQGAN, pixels: Tensor) -> list[Row]:
    """Which ids each mode changes, and what the fast one costs in likeness."""
    wanted, _ = naive_encode(plain, pixels)
    ours = tokenizer.encode(pixels)
    odd = int((ours != wanted).sum())
    said = f"of {wanted.numel():,} ids, those that are not the plain path's"
    tied = said + ties(plain, pixels, ours, wanted)
    found = [Row("tokenizer_exact_ids", odd, None, None, "ours <= 0", "ids", tied)]
    if has_native_bf16("cpu"):
        differ = int((fast_encode(tokenizer, pixels) != wanted).sum())
        shipped = delvm.load_tokenizer("shapes")
        small = crops("test", 256, 64)
        exact = psnr(shipped.decode(shipped.encode(small)), small).mean().item()
        with fast(shipped):
            quick = psnr(shipped.decode(shipped.encode(small)), small).mean().item()
        found += [
            Row("tokenizer_fast_ids", differ, None, None, "", "ids", said),
            Row(
                "tokenizer_fast_psnr",
                abs(quick - exact),
                None,
                None,
                "ours < 0.1",
                "dB",
                f"change of the round trip of 256 held-out photographs, {exact:.2f} dB exactly, "
                f"{quick:.2f} dB fast, with the tokenizer that ships: one that is trained",
            ),
        ]
    return found


def ties(plain: VQGAN, pixels: Tensor, ours: Tensor, wanted: Tensor) -> str:
    """How near, in float64, the codes are between which two ways decide otherwise; or nothing."""
    exact, gaps = contiguous_copy(plain).double(), []
    for picture, place in (ours != wanted).nonzero().tolist():
        z = exact.encode_features(pixels[picture, None].double())[0, place]
        pair = exact.codebook[torch.stack((ours[picture, place], wanted[picture, place]))]
        near, far = (z - pair).square().sum(1).sort().values.tolist()
        gaps.append((far - near) / near)
    return f"; their distances differ by at most {max(gaps):.1e} of themselves" if gaps else ""


def shares(rates: dict[tuple[str, int], float], gflop: float) -> list[Row]:
    """GFLOP a second of each mode beside the best that this machine reached in the same run."""
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
                note=f"{gflop:.1f} GFLOP an image; the peer is the faster of a matrix product and "
                f"a convolution in {str(dtype).removeprefix('torch.')}",
            )
        )
    return found


def peak(dtype: torch.dtype) -> float:
    """GFLOP/s of a product of 4096 x 4096 matrices or of a 3 x 3 convolution, the faster."""
    a = torch.randn(4096, 4096, dtype=dtype)
    x = torch.randn(4, 256, 128, 128, dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.randn(256, 256, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
    seconds = medians({"gemm": lambda: a @ a, "conv": lambda: F.conv2d(x, w, padding=1)}, 5)
    work = {"gemm": 2 * 4096**3, "conv": 2 * 4 * 128**2 * 256**2 * 9}
    return max(work[name] / each for name, each in seconds.items()) / 1e9


def memory() -> Row:
    """What the search of 16 pictures adds to the peak, with a codebook eight times as large."""
    vectors, codes = 16 * 256, 65_536
    ours, plain = (_apart(way, vectors, codes) - _apart(way, 8, codes) for way in ("ours", "plain"))
    return Row.compare(
        "tokenizer_search_memory",
        max(ours, 0.0),
        plain,
        goal="ratio <= 0.1",
        unit="MiB",
        note="peak memory that searching 4,096 vectors among 65,536 codes adds to that of 8; one "
        f"matrix of all distances is {vectors * codes / 2**18:,.0f} MiB",
    )


def _apart(way: str, vectors: int, codes: int) -> float:
    """`_peak_of_search` in a process of its own, since a peak never goes down."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_of_search, (way, vectors, codes))


def _peak_of_search(way: str, vectors: int, codes: int) -> float:
    """Peak memory of a process that searches once, in MiB."""
    quantizer, z = VectorQuantizer(codes, 256), torch.randn(4096, 256)[:vectors]
    with torch.inference_mode():
        if way == "ours":
            quantizer.nearest_code_indices(z)
        else:
            naive_search(z, quantizer.codebook)
    # Not getrusage, whose peak a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]
