"""Training a student beside transformers' LlamaForCausalLM of the same size: tokens/s and memory.

Both train on the same ids with the same fused AdamW under the same autocast, in turns; transformers
eagerly with torch's attention, ours as `delvm train trainer.compile=true` does. The share of peak
is of a product of large matrices in the same run. The curve shows how the time of a step grows with
tokens and with layers.
"""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from delvm.models.precision import has_bf16, peak_flops
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.training.losses import cross_entropy, over_logits
from experiments.bench.frame import Row

DTYPE = torch.bfloat16
MIB = 2**20


@dataclass(frozen=True)
class Size:
    """A network and what it is trained on in one step."""

    name: str
    config: TransformerConfig
    rows: int
    length: int
    repeats: int


SIZES = (
    Size("36m", TransformerConfig(width=512, layers=8, heads=8, context=512), 4, 512, 7),
    Size("300m", TransformerConfig(), 1, 2048, 3),
)
# A small network in which to see how the time of a step grows: (layers, rows of 256 tokens).
CURVE = ((2, 4), (4, 4), (8, 4), (4, 1), (4, 2), (4, 8))


def rows() -> list[Row]:
    """Speed, share of peak and memory at both sizes; the curve."""
    if not has_bf16("cpu"):
        return []
    found: list[Row] = []
    for size in SIZES:
        found += speed(size)
        found.append(memory(size))
    return [*found, *curve()]


def ours(size: Size, compiled: bool = True) -> Callable[[Tensor], Tensor]:
    """loss(ids (B, T + 1)) of our student."""
    model = Transformer(size.config).train()
    if compiled:
        for block in model.blocks:
            block.compile()

    def loss(ids: Tensor) -> Tensor:
        hidden = model.hidden(ids[:, :-1]).flatten(0, 1)
        targets = ids[:, 1:].flatten()
        summed = over_logits(
            hidden,
            model.head.weight,
            lambda logits, part: cross_entropy(logits, targets[part]).sum(),
        )
        return summed / len(targets)

    loss.model = model  # type: ignore[attr-defined]
    return loss


def theirs(size: Size) -> Callable[[Tensor], Tensor]:
    """loss(ids (B, T + 1)) of transformers' model of that size."""
    from transformers import LlamaConfig, LlamaForCausalLM

    c = size.config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.width, intermediate_size=c.inner,
            num_hidden_layers=c.layers, num_attention_heads=c.heads, attention_bias=True,
            max_position_embeddings=c.context, rms_norm_eps=c.norm_eps, use_cache=False,
        )
    ).train()  # fmt: skip

    def loss(ids: Tensor) -> Tensor:
        known = ids[:, :-1]  # shifted inside, which leaves one token less to be predicted
        return model(input_ids=known, labels=known).loss

    loss.model = model  # type: ignore[attr-defined]
    return loss


def step_of(loss: Any, size: Size) -> Callable[[], float]:
    """A step of training: forward, backward, AdamW."""
    model: nn.Module = loss.model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    ids = torch.randint(0, size.config.vocab_size, (size.rows, size.length + 1))

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", DTYPE):
            value = loss(ids)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def speed(size: Size) -> list[Row]:
    """Tokens a second in turns, and ours as a share of the peak."""
    torch.manual_seed(0)
    mine = ours(size)
    steps = {"ours": step_of(mine, size), "theirs": step_of(theirs(size), size)}
    for step in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    peaks = []
    for _ in range(size.repeats):
        for name, step in steps.items():
            times[name].append(step())
        peaks.append(peak_flops.__wrapped__(torch.device("cpu"), DTYPE, 2048))
    tokens = size.rows * size.length
    rates = {name: tokens / statistics.median(each) for name, each in times.items()}
    flops = mine.model.flops_per_token(size.length)  # type: ignore[attr-defined]
    peak = statistics.median(peaks)
    note = f"training, {size.rows} x {size.length} tokens, bfloat16 autocast, fused AdamW"
    return [
        Row.compare(f"student_{size.name}", rates["ours"], rates["theirs"], goal="ratio >= 1.25",
                    unit="tokens/s", note=f"{note}; beside transformers, eager with SDPA"),
        Row.compare(f"student_{size.name}_of_peak", rates["ours"] * flops / 1e9, peak / 1e9,
                    goal="ratio >= 0.75", unit="GFLOP/s",
                    note=f"{note}; beside a product of 2,048 x 2,048 matrices in the same run"),
        Row.compare(f"theirs_{size.name}_of_peak", rates["theirs"] * flops / 1e9, peak / 1e9,
                    unit="GFLOP/s", note="the same of transformers"),
    ]  # fmt: skip


def memory(size: Size) -> Row:
    """Peak memory of a process that takes two steps, each way."""
    peaks = {}
    for name in ("ours", "theirs"):
        # A process of its own: a peak never goes down.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            peaks[name] = pool.apply(_peak, (name, size))
    return Row.compare(
        f"student_{size.name}_memory", peaks["ours"], peaks["theirs"], goal="ratio <= 0.75",
        unit="MiB", note="what two steps of training add to the peak memory of a process",
    )  # fmt: skip


def _peak(name: str, size: Size) -> float:
    import transformers  # noqa: F401  # in both processes, so that its own size cancels

    before = _high_water()
    step = step_of(ours(size) if name == "ours" else theirs(size), size)
    step()
    step()
    return _high_water() - before


def _high_water() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def curve() -> list[Row]:
    """Seconds of a step by layers and by tokens, beside what straight growth would take."""
    taken = {}
    for layers, count in CURVE:
        config = TransformerConfig(width=512, layers=layers, heads=8, context=256)
        size = Size("curve", config, count, 256, 3)
        step = step_of(ours(size, compiled=False), size)
        step()
        taken[layers, count] = statistics.median(step() for _ in range(5))
    found = []
    for name, points in (("layers", CURVE[:3]), ("tokens", (*CURVE[3:5], CURVE[1], CURVE[5]))):
        line = ", ".join(
            f"{layers if name == 'layers' else count * 256}: {taken[layers, count]:.3f} s"
            for layers, count in points
        )
        first, last = points[-2], points[-1]
        growth = taken[last] / taken[first]
        found.append(
            Row(f"student_growth_in_{name}", growth, None, None, "ours <= 2.1",
                "x for twice as many", f"a step at width 512, by {name}: {line}")
        )  # fmt: skip
    return found
