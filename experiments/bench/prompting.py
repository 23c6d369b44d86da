"""Prompting a 300M student of random weights: 7 images of prompt (1,792 tokens), 1 of answer.

The peer of one query is the fastest of four ways to call transformers' `generate` on the exported
model: dynamic or static cache, eager or compiled. "of_limit" compares decoding with the speed at
which memory can be read, all weights once per token. "shared" is `delvm.inference.Engine` with 16
queries that continue one prompt of 3 pairs; its peer is the plain loop: PyTorch's layers, one query
at a time, the complete prompt each time.
"""

import gc
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, StaticCache, StoppingCriteriaList

from delvm.inference.decoding import GREEDY
from delvm.inference.engine import Engine
from delvm.inference.generation import Rows, decode_tokens, generate
from delvm.interop.formats import llama
from delvm.models.attention import AttentionBackend
from delvm.models.precision import has_native_bf16
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.weight_precision import quantize_int8
from experiments.bench.harness import Row

TOKENS, PAIRS, QUERIES = 256, 3, 16
PROMPT = (2 * PAIRS + 1) * TOKENS
DECODED = 32  # tokens that are timed; each one takes the same time, within a few percent
ROUNDS = 3
PEERS = {
    f"{cache} cache, {'compiled' if compiled else 'eager'}": (cache, compiled)
    for compiled in (False, True)
    for cache in ("dynamic", "static")
}
Times = dict[str, list[float]]
Clock = Callable[[int], list[float]]


def rows() -> list[Row]:
    """Speed of decoding, of prefill and of shared prompts; memory over the batch size."""
    dtype = torch.bfloat16 if has_native_bf16("cpu") else torch.float32
    student = build_student(dtype)
    torch.manual_seed(1)
    row = torch.randint(8192, (1, PROMPT))
    with torch.inference_mode():
        measured = [shared(student, row), *one_query(student, row, dtype)]
    return [*measured, memory()]


def build_student(dtype: torch.dtype) -> Transformer:
    """The paper's 300M model with random weights."""
    torch.manual_seed(0)
    return Transformer(TransformerConfig(), torch.randn(8192, 256)).eval().to(dtype)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def shared(student: Transformer, row: Tensor) -> Row:
    """Images/s of a batch that shares its prompt, of a plain loop, and of the engine one by one."""
    prompt, query = row[0, : 2 * PAIRS * TOKENS], row[:, 2 * PAIRS * TOKENS :]
    queries = torch.cat((query, torch.randint(8192, (QUERIES - 1, TOKENS))))
    generate(student, row, 1)  # builds the kernels
    ours = seconds(lambda: Engine(student).generate([prompt], queries, TOKENS))
    alone = seconds(lambda: generate(student, row, TOKENS))
    with pytorch_layers(student):
        peer = seconds(lambda: generate(student, row, TOKENS))
    note = (
        f"{QUERIES} queries that share 3 pairs vs. PyTorch's layers, each query alone with its "
        f"complete prompt; alone with the CPU kernel: {1 / alone:.3g} images/s"
    )
    return Row.compare("prompting_shared", QUERIES / ours, 1 / peer, goal="ratio >= 6",
                       unit="images/s", note=note)  # fmt: skip


@contextmanager
def pytorch_layers(student: Transformer) -> Iterator[None]:
    """Without the kernels of this package."""
    attentions: list[Any] = [block.attention for block in student.blocks]
    for attention in attentions:
        attention.backend = AttentionBackend.sdpa
    student.config.attention = AttentionBackend.sdpa
    try:
        yield
    finally:
        for attention in attentions:
            attention.backend = AttentionBackend.auto
        student.config.attention = AttentionBackend.auto


def one_query(student: Transformer, row: Tensor, dtype: torch.dtype) -> list[Row]:
    """Prefill and decoding of one query, next to transformers and to what the machine can do."""
    with tempfile.TemporaryDirectory() as tmp:
        llama.write(student, Path(tmp, "llama"), dtype)
        theirs = LlamaForCausalLM.from_pretrained(Path(tmp, "llama"), dtype=dtype).eval()
    peers = {name: peer_clock(theirs, row, *how) for name, how in PEERS.items()}
    first = {name: prefill_and_decode(clock) for name, clock in peers.items()}
    best = [min(first, key=lambda name: first[name][part]) for part in (0, 1)]
    int8 = build_student(dtype)
    quantize_int8(int8)
    clocks: dict[str, Clock] = {
        "ours": lambda count: our_clock(student, row, count),
        "int8": lambda count: our_clock(int8, row, count),
        **{name: peers[name] for name in best},
    }
    times: Times = {}
    for _ in range(ROUNDS):  # interleaved, since the speed of a shared machine changes
        for name, clock in clocks.items():
            prefill, step = prefill_and_decode(clock)
            times.setdefault(f"{name} prefill", []).append(prefill)
            times.setdefault(f"{name} decode", []).append(step)
        times.setdefault("read", []).append(read_time(student))
        times.setdefault("product", []).append(product_time(dtype))
    t = {name: statistics.median(each) for name, each in times.items()}
    all_peers = "; ".join(
        f"{name}: {a:.2f} s and {1 / b:.3g} tokens/s" for name, (a, b) in first.items()
    )
    decode = 1 / t["ours decode"]
    work = student.flops_per_token(PROMPT) / 3 * PROMPT
    return [
        Row.compare("prompting_decode", decode, 1 / t[f"{best[1]} decode"], goal="ratio >= 3",
                    unit="tokens/s", note=f"one query vs. transformers, {best[1]} ({all_peers})"),
        Row.compare("prompting_decode_of_limit", decode, 1 / t["read"], goal="ratio >= 0.6",
                    unit="tokens/s", note="vs. reading all weights once"),
        Row.compare("prompting_decode_int8", 1 / t["int8 decode"], decode, goal="ratio >= 1.7",
                    unit="tokens/s", note="one query with int8 weights vs. bfloat16"),
        Row.compare("prompting_prefill", 1 / t["ours prefill"], 1 / t[f"{best[0]} prefill"],
                    unit="prompts/s", note=f"and one token of the answer vs. {best[0]}"),
        Row.compare("prompting_prefill_of_peak", work / t["ours prefill"] / 1e9,
                    2 * 2048**3 / t["product"] / 1e9, goal="ratio >= 0.8", unit="GFLOP/s",
                    note="vs. a product of 2,048 x 2,048 matrices"),
    ]  # fmt: skip


def our_clock(student: Transformer, row: Tensor, count: int) -> list[float]:
    """When each of ``count`` greedy tokens was there; the first entry is the start."""
    stamps = [time.perf_counter()]

    def stamp(logits: list[Tensor]) -> Tensor:
        stamps.append(time.perf_counter())
        return logits[0]

    decode_tokens([Rows(student, row, count)], count, GREEDY, combine=stamp)
    return stamps


def peer_clock(theirs: Any, row: Tensor, cache: str, compiled: bool) -> Clock:
    """As `our_clock`, of transformers' `generate`."""
    eager = theirs.forward
    forward = torch.compile(eager, dynamic=cache == "dynamic") if compiled else eager

    def clock(count: int) -> list[float]:
        stamps: list[float] = []

        def stamp(ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
            stamps.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        options: dict[str, Any] = {"max_new_tokens": count, "min_new_tokens": count}
        options["stopping_criteria"] = StoppingCriteriaList([stamp])
        if cache == "static":  # as long for all counts, or each would be compiled for itself
            options["past_key_values"] = StaticCache(theirs.config, max_cache_len=PROMPT + TOKENS)
        theirs.forward = forward
        stamps.append(time.perf_counter())
        mask = torch.ones_like(row)
        theirs.generate(row, attention_mask=mask, do_sample=False, pad_token_id=0, **options)
        theirs.forward = eager
        return stamps

    return clock


def prefill_and_decode(clock: Clock) -> tuple[float, float]:
    """Seconds of a prompt with the first token of its answer; median of each token after it."""
    clock(3)  # warm up; compiles
    stamps = clock(1 + DECODED)
    return stamps[1] - stamps[0], statistics.median(b - a for a, b in pairwise(stamps[1:]))


def read_time(student: Transformer) -> float:
    """Seconds to read as many bytes as the weights have, at the speed of summing 1 GiB."""
    data = torch.ones(2**28)
    speed = data.numel() * 4 / statistics.median(seconds(data.sum) for _ in range(5))
    return sum(p.numel() * p.element_size() for p in student.parameters()) / speed


def product_time(dtype: torch.dtype) -> float:
    """Seconds of a product of two matrices of 2,048 x 2,048."""
    a = torch.ones(2048, 2048, dtype=dtype)
    return statistics.median(seconds(lambda: a @ a) for _ in range(7))


def memory() -> Row:
    """Memory of 16 queries that share their prompt, and of complete rows; a process each."""
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        ours, peer = pool.map(memory_curve, [True, False], chunksize=1)
    rows = zip(BATCHES, ours, peer, strict=True)
    curve = ", ".join(f"{size} queries {a:,.0f} vs. {b:,.0f}" for size, a, b in rows)
    note = f"peak above the weights, that share a prompt vs. complete rows; {curve}"
    return Row.compare("prompting_memory", ours[-1], peer[-1], unit="MiB", note=note)


BATCHES = (1, 4, 16)


def memory_curve(share: bool) -> list[float]:
    """Peak memory in MiB of prefill and two tokens, above that of the weights, per batch size."""
    student = build_student(torch.bfloat16)
    curve = []
    for size in BATCHES:
        prompt = torch.randint(8192, (2 * PAIRS * TOKENS,))
        queries = torch.randint(8192, (size, TOKENS))
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak from now on
        before = _status("VmRSS")
        answer_two_tokens(student, prompt, queries, share)
        curve.append((_status("VmHWM") - before) / 1024)
    return curve


@torch.inference_mode()
def answer_two_tokens(student: Transformer, prompt: Tensor, queries: Tensor, share: bool) -> None:
    """Prefill, and two tokens of each answer, with room for the complete answers."""
    cache = None
    if share:
        cache = student.make_kv_cache(1, len(prompt))
        student.forward_hidden(prompt[None], cache)
    else:
        queries = torch.cat((prompt.expand(len(queries), -1), queries), dim=1)
    own = student.make_kv_cache(len(queries), PROMPT + TOKENS, cache)
    own.buffer.zero_()  # an answer uses all of it
    hidden = student.forward_hidden(queries, own)[:, -1]
    student.forward_hidden(student.head(hidden).argmax(-1, keepdim=True), own)


def _status(key: str) -> int:
    """A value in KiB of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1])
