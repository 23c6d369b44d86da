"""Training a student and transformers' LlamaForCausalLM of the same size: tokens/s and memory.

Each trains in its own process and their steps are interleaved: the same ids, fused AdamW and
autocast for all. transformers runs eagerly with SDPA; ours runs as `delvm train
trainer.compile=true` does, so with glibc malloc configured to keep freed memory. "malloc" is
transformers with that malloc setting. The fraction of peak is relative to a product of large
matrices in the same run. The scaling rows show how step time grows with tokens and with layers.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from experiments.bench.harness import Row, added_memory, processes, take_step

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Size:
    """A model size, its batch (rows x length tokens), and which implementations are compared."""

    name: str
    config: TransformerConfig
    rows: int
    length: int
    repeats: int
    variants: Sequence[str] = ("ours", "theirs")

    @property
    def tokens(self) -> int:
        """Tokens per step."""
        return self.rows * self.length


SIZES = (
    Size(
        "36m", TransformerConfig(dim=512, n_layers=8, n_heads=8, max_seq_len=512), 4, 512, 9,
        ("ours", "theirs", "malloc"),
    ),
    Size("300m", TransformerConfig(), 1, 2048, 5),
)  # fmt: skip
# A small model that shows how the step time grows: (layers, rows of 256 tokens).
SCALING = ((2, 4), (4, 4), (8, 4), (4, 1), (4, 2), (4, 8))


def rows() -> list[Row]:
    """Speed, fraction of peak and memory at both sizes; growth of the step time."""
    if not has_native_bf16("cpu"):
        return []
    found: list[Row] = []
    for size in SIZES:
        found += compare(size)
    return [*found, *scaling()]


def compare(size: Size) -> list[Row]:
    """Tokens/s and memory of every variant, interleaved, and the fraction of peak."""
    times: dict[str, list[float]] = {name: [] for name in size.variants}
    peaks = []
    with processes({name: partial(build, name, size) for name in size.variants}) as pools:
        for number in range(2 + size.repeats):
            for name, pool in pools.items():
                seconds = pool.apply(take_step)
                if number >= 2:  # the first steps compile and touch their memory
                    times[name].append(seconds)
            peaks.append(measure_peak_flops.__wrapped__(torch.device("cpu"), DTYPE, 2048))
        used = {name: pool.apply(added_memory) for name, pool in pools.items()}
    rates = {name: size.tokens / statistics.median(seconds) for name, seconds in times.items()}
    with torch.device("meta"):
        flops = Transformer(size.config).flops_per_token(size.length) / 1e9
    peak = statistics.median(peaks) / 1e9
    note = f"training, {size.rows} x {size.length} tokens, bfloat16 autocast, fused AdamW"
    found = [
        Row.compare(f"student_{size.name}", rates["ours"], rates["theirs"], goal="ratio >= 1.25",
                    unit="tokens/s", note=f"{note}; vs. transformers, eager with SDPA"),
        Row.compare(f"student_{size.name}_of_peak", rates["ours"] * flops, peak,
                    goal="ratio >= 0.75", unit="GFLOP/s",
                    note=f"{note}; vs. a product of 2,048 x 2,048 matrices in the same run"),
        Row.compare(f"theirs_{size.name}_of_peak", rates["theirs"] * flops, peak,
                    unit="GFLOP/s", note="the same for transformers"),
        Row.compare(f"student_{size.name}_memory", used["ours"], used["theirs"],
                    goal="ratio <= 0.75", unit="MiB",
                    note="memory that training adds to the peak of a process"),
    ]  # fmt: skip
    if "malloc" in rates:
        found.append(
            Row.compare(f"student_{size.name}_vs_malloc", rates["ours"], rates["malloc"],
                        unit="tokens/s",
                        note="vs. transformers with the same malloc setting")
        )  # fmt: skip
    return found


def build(name: str, size: Size) -> Callable[[], float]:
    """The training step of a variant, in its process."""
    if name != "theirs":
        configure_malloc()
    return training_step(ours(size) if name == "ours" else theirs(size), size)


def ours(size: Size, compiled: bool = True) -> Callable[[Tensor], Tensor]:
    """The next-token loss of our student, as a function of ids (B, T)."""
    cfg = size.config
    model = Transformer(cfg, torch.randn(cfg.vocab_size, cfg.codebook_dim)).train()
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
    """The same for transformers' model of that size.

    Its embedding is frozen, as our codebook is, so that both train equally many parameters.
    """
    cfg = size.config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size, hidden_size=cfg.dim, intermediate_size=cfg.resolved_ffn_dim,
            num_hidden_layers=cfg.n_layers, num_attention_heads=cfg.n_heads, attention_bias=True,
            max_position_embeddings=cfg.max_seq_len, rms_norm_eps=cfg.norm_eps, use_cache=False,
        )
    ).train()  # fmt: skip
    model.model.embed_tokens.requires_grad_(False)

    def loss(ids: Tensor) -> Tensor:
        # The model's own shift would compute the logits of the last position and drop them.
        targets = ids[:, 1:].contiguous()
        return model(input_ids=ids[:, :-1], labels=targets, shift_labels=targets).loss

    loss.model = model  # type: ignore[attr-defined]
    return loss


def training_step(loss: Any, size: Size) -> Callable[[], float]:
    """A timed training step: forward, backward, clipping, AdamW; returns its seconds."""
    model: nn.Module = loss.model
    clip = clip_grads_ if isinstance(model, Transformer) else nn.utils.clip_grad_norm_
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-4, fused=True)
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, size.config.vocab_size, (size.rows, size.length + 1), generator=rng)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", DTYPE):
            value = loss(ids)
        value.backward()
        clip(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def scaling() -> list[Row]:
    """Growth of the step time when layers or tokens double; 2 is linear."""
    seconds = {}
    for layers, count in SCALING:
        config = TransformerConfig(dim=512, n_layers=layers, n_heads=8, max_seq_len=256)
        size = Size("scaling", config, count, 256, 3)
        step = training_step(ours(size, compiled=False), size)
        step()
        seconds[layers, count] = statistics.median(step() for _ in range(5))
    found = []
    by_tokens = (*SCALING[3:5], SCALING[1], SCALING[5])
    for name, points in (("layers", SCALING[:3]), ("tokens", by_tokens)):
        times = ", ".join(
            f"{layers if name == 'layers' else count * 256}: {seconds[layers, count]:.3f} s"
            for layers, count in points
        )
        first, last = points[-2], points[-1]
        growth = seconds[last] / seconds[first]
        found.append(
            Row(f"student_growth_in_{name}", growth, None, None, "ours <= 2.1",
                "x per doubling", f"step time at dim 512, by {name}: {times}")
        )  # fmt: skip
    return found
