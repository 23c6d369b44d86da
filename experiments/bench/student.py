"""Training a student beside transformers' LlamaForCausalLM of the same size: tokens/s and memory.

Each trains in a process of its own, as it would be used, and takes its steps in turns with the
others: on the same ids, with the same fused AdamW under the same autocast. transformers runs
eagerly with torch's attention; ours as `delvm train trainer.compile=true` does, so with the command
line's setting of the allocator. "kept" is transformers with that setting as well. The share of peak
is of a product of large matrices in the same run. The curve shows how the time of a step grows with
tokens and with layers.
"""

import multiprocessing
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from delvm.models.cpu.malloc import configure_malloc
from delvm.models.precision import has_native_bf16, measure_peak_flops
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.training.compiling import compile_blocks
from delvm.training.losses import CrossEntropyLoss, chunked_linear_loss
from delvm.training.strategies import clip_grads_
from experiments.bench.frame import Row

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Size:
    """A network and what it is trained on in one step; who is compared."""

    name: str
    config: TransformerConfig
    rows: int
    length: int
    repeats: int
    who: Sequence[str] = ("ours", "theirs")

    @property
    def tokens(self) -> int:
        """Of a step."""
        return self.rows * self.length


SIZES = (
    Size(
        "36m", TransformerConfig(dim=512, n_layers=8, n_heads=8, max_seq_len=512), 4, 512, 9,
        ("ours", "theirs", "kept"),
    ),
    Size("300m", TransformerConfig(), 1, 2048, 5),
)  # fmt: skip
# A small network in which to see how the time of a step grows: (layers, rows of 256 tokens).
CURVE = ((2, 4), (4, 4), (8, 4), (4, 1), (4, 2), (4, 8))


def rows() -> list[Row]:
    """Speed, share of peak and memory at both sizes; the curve."""
    if not has_native_bf16("cpu"):
        return []
    found: list[Row] = []
    for size in SIZES:
        found += beside(size)
    return [*found, *curve()]


def beside(size: Size) -> list[Row]:
    """Tokens a second and memory of all in turns, and ours as a share of the peak."""
    times: dict[str, list[float]] = {name: [] for name in size.who}
    peaks = []
    with processes(size) as each:
        for number in range(2 + size.repeats):
            for name, pool in each.items():
                seconds = pool.apply(_step)
                if number >= 2:  # the first ones compile, and touch their memory
                    times[name].append(seconds)
            peaks.append(measure_peak_flops.__wrapped__(torch.device("cpu"), DTYPE, 2048))
        used = {name: pool.apply(_used) for name, pool in each.items()}
    rates = {name: size.tokens / statistics.median(taken) for name, taken in times.items()}
    with torch.device("meta"):
        flops = Transformer(size.config).flops_per_token(size.length) / 1e9
    peak = statistics.median(peaks) / 1e9
    note = f"training, {size.rows} x {size.length} tokens, bfloat16 autocast, fused AdamW"
    found = [
        Row.compare(f"student_{size.name}", rates["ours"], rates["theirs"], goal="ratio >= 1.25",
                    unit="tokens/s", note=f"{note}; beside transformers, eager with SDPA"),
        Row.compare(f"student_{size.name}_of_peak", rates["ours"] * flops, peak,
                    goal="ratio >= 0.75", unit="GFLOP/s",
                    note=f"{note}; beside a product of 2,048 x 2,048 matrices in the same run"),
        Row.compare(f"theirs_{size.name}_of_peak", rates["theirs"] * flops, peak,
                    unit="GFLOP/s", note="the same of transformers"),
        Row.compare(f"student_{size.name}_memory", used["ours"], used["theirs"],
                    goal="ratio <= 0.75", unit="MiB",
                    note="what training adds to the peak memory of a process"),
    ]  # fmt: skip
    if "kept" in rates:
        found.append(
            Row.compare(f"student_{size.name}_beside_kept", rates["ours"], rates["kept"],
                        unit="tokens/s",
                        note="beside transformers that keeps freed memory as well")
        )  # fmt: skip
    return found


@contextmanager
def processes(size: Size) -> Iterator[dict[str, Pool]]:
    """A process for each that is compared, ready to take steps."""
    context = multiprocessing.get_context("spawn")
    pools = {name: context.Pool(1, _begin, (name, size)) for name in size.who}
    try:
        yield pools
    finally:
        for pool in pools.values():
            pool.terminate()
            pool.join()


_state: dict[str, Any] = {}  # of such a process


def _begin(name: str, size: Size) -> None:
    import torch._inductor.compile_fx  # noqa: F401  # in all of them, as LlamaForCausalLM is

    if name != "theirs":
        configure_malloc()
    _state["before"] = _high_water()
    _state["step"] = step_of(ours(size) if name == "ours" else theirs(size), size)


def _step() -> float:
    return _state["step"]()


def _used() -> float:
    return _high_water() - _state["before"]


def _high_water() -> float:
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024  # type: ignore[index]


def ours(size: Size, compiled: bool = True) -> Callable[[Tensor], Tensor]:
    """loss(ids (B, T)) of our student, of each id after the first."""
    c = size.config
    model = Transformer(c, torch.randn(c.vocab_size, c.codebook_dim)).train()
    if compiled:
        compile_blocks(model)
    loss_fn = CrossEntropyLoss()

    def loss(ids: Tensor) -> Tensor:
        hidden = model.forward_hidden(ids[:, :-1]).flatten(0, 1)
        targets = ids[:, 1:].flatten()
        total = chunked_linear_loss(
            hidden,
            model.head.weight,
            loss_fn,
            (targets, torch.ones(len(targets))),
            compiled=compiled,
        )
        return total / len(targets)

    loss.model = model  # type: ignore[attr-defined]
    return loss


def theirs(size: Size) -> Callable[[Tensor], Tensor]:
    """The same of transformers' model of that size.

    Its table of embeddings is frozen, as our codebook is, so that as much is trained.
    """
    c = size.config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.resolved_ffn_dim,
            num_hidden_layers=c.n_layers, num_attention_heads=c.n_heads, attention_bias=True,
            max_position_embeddings=c.max_seq_len, rms_norm_eps=c.norm_eps, use_cache=False,
        )
    ).train()  # fmt: skip
    model.model.embed_tokens.requires_grad_(False)

    def loss(ids: Tensor) -> Tensor:
        # Their own shift would compute the logits after the last id as well, and drop them.
        after = ids[:, 1:].contiguous()
        return model(input_ids=ids[:, :-1], labels=after, shift_labels=after).loss

    loss.model = model  # type: ignore[attr-defined]
    return loss


def step_of(loss: Any, size: Size) -> Callable[[], float]:
    """A step of training: forward, backward, clipping, AdamW."""
    model: nn.Module = loss.model
    clip = clip_grads_ if isinstance(model, Transformer) else nn.utils.clip_grad_norm_
    learned = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-4, fused=True)
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size.config.vocab_size, (size.rows, size.length + 1), generator=drawn)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", DTYPE):
            value = loss(ids)
        value.backward()
        clip(learned, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def curve() -> list[Row]:
    """Seconds of a step by layers and by tokens, beside what straight growth would take."""
    taken = {}
    for layers, count in CURVE:
        config = TransformerConfig(dim=512, n_layers=layers, n_heads=8, max_seq_len=256)
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
