"""Prompting a 300M student of random weights in bfloat16: 7 images of prompt, 1 of answer.

"shared" is `delvm.inference.Engine` with 16 queries that continue one prompt of 3 pairs. Its peer
is the plain loop: one query at a time, the complete prompt each time. "decode" is one query
compared with transformers' `generate` (dynamic cache, eager) on the exported model; "of_limit"
compares with the speed at which memory can be read, all weights once per token.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from delvm.inference.engine import Engine
from delvm.inference.generation import generate
from delvm.interop.formats import llama
from delvm.models.precision import has_native_bf16, measure_peak_flops
from delvm.models.transformer import Transformer, TransformerConfig
from experiments.bench.harness import Row

TOKENS, PAIRS, QUERIES = 256, 3, 16
DECODED = 32  # tokens that are timed; each one takes the same time, within a few percent


def rows() -> list[Row]:
    """Speed of shared prompts, of decoding and of prefill."""
    dtype = torch.bfloat16 if has_native_bf16("cpu") else torch.float32
    torch.manual_seed(0)
    student = Transformer(TransformerConfig(), torch.randn(8192, 256)).eval().to(dtype)
    prompt = torch.randint(8192, (2 * PAIRS * TOKENS,))
    queries = torch.randint(8192, (QUERIES, TOKENS))
    with torch.inference_mode():
        return [shared(student, prompt, queries), *decode(student, prompt, queries[:1], dtype)]


def seconds(call: Callable[[], object], repeats: int = 1) -> float:
    """Median wall time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def shared(student: Transformer, prompt: Tensor, queries: Tensor) -> Row:
    """Images/s of a batch that shares its prompt, and of the plain loop over two of its queries."""
    complete = torch.cat((prompt.expand(2, -1), queries[:2]), dim=1)

    def plain() -> None:
        for row in complete:
            generate(student, row[None], TOKENS)

    ours = seconds(lambda: Engine(student).generate([prompt], queries, TOKENS))
    peer = seconds(plain)
    note = f"{QUERIES} queries that share 3 pairs vs. each alone with its complete prompt"
    return Row.compare("prompting_shared", QUERIES / ours, 2 / peer, goal="ratio >= 6",
                       unit="images/s", note=note)  # fmt: skip


def decode(student: Transformer, prompt: Tensor, query: Tensor, dtype: torch.dtype) -> list[Row]:
    """Prefill and decoding of one query, next to transformers."""
    row = torch.cat((prompt, query[0]))[None]
    with tempfile.TemporaryDirectory() as tmp:
        llama.write(student, Path(tmp, "llama"), dtype)
        theirs = LlamaForCausalLM.from_pretrained(Path(tmp, "llama"), dtype=dtype).eval()

    def ours(count: int) -> None:
        generate(student, row, count)

    def peer(count: int) -> None:
        options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
        theirs.generate(row, attention_mask=torch.ones_like(row), pad_token_id=0, **options)

    times: dict[str, list[float]] = {}
    for _ in range(3):  # interleaved
        for name, call in (("ours", ours), ("peer", peer)):
            first = seconds(lambda call=call: call(1))  # type: ignore[misc]
            rest = seconds(lambda call=call: call(1 + DECODED))  # type: ignore[misc]
            times.setdefault(f"{name}_prefill", []).append(first)
            times.setdefault(f"{name}_decode", []).append((rest - first) / DECODED)
    t = {name: statistics.median(each) for name, each in times.items()}
    size = sum(p.numel() * p.element_size() for p in student.parameters())
    limit = size / read_bandwidth()
    peak = measure_peak_flops(torch.device("cpu"), dtype, 2048)
    flops = student.flops_per_token(row.shape[1]) / 3 * row.shape[1] / t["ours_prefill"]
    return [
        Row.compare("prompting_decode", 1 / t["ours_decode"], 1 / t["peer_decode"],
                    goal="ratio >= 3", unit="tokens/s", note="one query vs. transformers"),
        Row.compare("prompting_decode_of_limit", 1 / t["ours_decode"], 1 / limit,
                    goal="ratio >= 0.6", unit="tokens/s", note="vs. reading all weights once"),
        Row.compare("prompting_prefill", 1 / t["ours_prefill"], 1 / t["peer_prefill"],
                    unit="prompts/s", note="1,792 tokens and one answer token vs. transformers"),
        Row.compare("prompting_prefill_of_peak", flops / 1e9, peak / 1e9, goal="ratio >= 0.8",
                    unit="GFLOP/s", note="vs. a product of 2,048 x 2,048 matrices"),
    ]  # fmt: skip


def read_bandwidth() -> float:
    """Bytes/s at which memory is read: the sum of 1 GiB."""
    data = torch.ones(2**28)
    return data.numel() * 4 / seconds(data.sum, 5)
