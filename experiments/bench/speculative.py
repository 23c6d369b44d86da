"""Speculative decoding: how many drafted tokens are accepted, and what that gains.

"ceiling" is a constructed pair of random weights at 300M in bfloat16. The last layers of the
student add nothing to their input, but take their time, and the draft is its first layers: every
draft is accepted. It shows what checking several tokens at once can gain, not what distilled
students reach. The real pairs, on held-out queries, are "shipped", the teacher and the student
that come with the package, and "demo", those that `make demo` trains. Both are so small that a
token takes the time of the calls, not of the weights, so drafting need not pay: look at how many
drafts are accepted. Both sides of a row answer the same queries, one by one.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

import delvm
from delvm.evaluation.queries.query_set import build_query_set
from delvm.inference.decoding import SamplingConfig
from delvm.inference.engine import DRAFT_TOKENS, Engine
from delvm.inference.speculative import DraftTiming
from delvm.interop.load import load_student, load_tokenizer
from delvm.models.precision import has_native_bf16
from delvm.models.transformer import Block, Transformer, TransformerConfig
from experiments.bench.harness import Row

DEMO = Path("outputs/demo")
TASKS = ("segmentation", "pose", "derain", "deblur")
SAMPLINGS = {
    "greedy": SamplingConfig("greedy"),
    "mean_embedding": SamplingConfig("mean_embedding"),
    "sample": SamplingConfig("sample", temperature=1.0),
}


def rows() -> list[Row]:
    """All pairs; that of the demo where `make demo` has left its models."""
    found = [ceiling(TransformerConfig(), layers) for layers in (2, 6)]
    with tempfile.TemporaryDirectory() as folder:
        source = ["source.size=64", "source.num_val=64", "source.num_test=16"]
        delvm.run("prepare", [*source, "splits=[val,test]", f"output_dir={folder}"])
        found += trained("shipped", Path(folder), "shapes", "shapes_teacher", "shapes")
    if not (DEMO / "student").is_dir():
        print(f"speculative: no {DEMO}, run `make demo` for its pair", file=sys.stderr)
        return found
    models = DEMO / "tokenizer", DEMO / "teacher", DEMO / "student"
    return [*found, *trained("demo", DEMO / "pairs", *models)]


def ceiling(
    config: TransformerConfig, draft_layers: int, prompt_tokens: int = 1536, new_tokens: int = 64
) -> Row:
    """Tokens/s with and without a draft of the first layers, all of whose tokens are accepted."""
    dtype = torch.bfloat16 if has_native_bf16("cpu") else torch.float32
    student, draft = constructed_pair(config, draft_layers, dtype)
    prompt = torch.randint(config.vocab_size, (prompt_tokens,))
    queries = torch.randint(config.vocab_size, (2, prompt_tokens // 6))
    engine = Engine(student, draft=draft)
    rate, alone = rates(engine, [(prompt, query) for query in queries], new_tokens)
    counts = engine.speculation
    share = counts.accepted / max(1, counts.drafted)
    note = (
        f"{config.n_layers} layers of which the last {config.n_layers - draft_layers} add nothing; "
        f"the draft has {draft_layers}, {share:.0%} accepted, {DRAFT_TOKENS} per cycle; vs. without"
    )
    return Row.compare(f"speculative_ceiling_{draft_layers}_layers", rate, alone,
                       unit="tokens/s", note=note)  # fmt: skip


def constructed_pair(
    config: TransformerConfig, draft_layers: int, dtype: torch.dtype
) -> tuple[Transformer, Transformer]:
    """A student whose layers after ``draft_layers`` add zero, and its first layers as a draft."""
    torch.manual_seed(0)
    codebook = torch.randn(config.vocab_size, config.codebook_dim)
    student = Transformer(config, codebook).eval().requires_grad_(False)
    for block in list(student.blocks)[draft_layers:]:
        assert isinstance(block, Block)
        for layer in (block.attention.out, block.mlp.down):
            assert isinstance(layer, nn.Linear)
            layer.weight.zero_()
    draft = Transformer(replace(config, n_layers=draft_layers), codebook).eval()
    kept = draft.state_dict()
    draft.load_state_dict(
        {name: each for name, each in student.state_dict().items() if name in kept}
    )
    return student.to(dtype), draft.requires_grad_(False).to(dtype)


def trained(
    name: str,
    pairs: Path,
    tokenizer_path: Path | str,
    teacher_path: Path | str,
    draft_path: Path | str,
    queries: int = 8,
    shots: int = 3,
) -> list[Row]:
    """Accepted fraction and speed of a trained pair, over held-out queries of all tasks."""
    tokenizer = load_tokenizer(tokenizer_path)
    teacher, draft = load_student(teacher_path), load_student(draft_path)
    given: list[tuple[Tensor, Tensor]] = []
    for task in TASKS:
        query_set = build_query_set(pairs, task, tokenizer, num_queries=queries,
                                    num_shots=shots, seed=0, batch_size=32)  # fmt: skip
        given += zip(query_set.prompts(slice(None)), query_set.queries.ids, strict=True)
    found = []
    for decoding, sampling in SAMPLINGS.items():
        engine, usual = Engine(teacher, draft=draft), Engine(teacher, draft=draft)
        engine.speculation.timings[1] = AlwaysPays(DRAFT_TOKENS + 1)
        engine.relative_cost = 0.0  # samples decide by it
        size, codebook = tokenizer.tokens_per_image, tokenizer.codebook
        rate, alone = rates(engine, given, size, sampling, codebook)
        as_usual, alone_then = rates(usual, given, size, sampling, codebook)
        counts = engine.speculation
        accepted = counts.accepted / max(1, counts.drafted)
        per_call = counts.tokens / max(1, counts.teacher_calls)
        note = (
            f"{len(given)} held-out queries of {', '.join(TASKS)}; {draft.parameter_count():,} "
            f"parameters draft for {teacher.parameter_count():,}"
        )
        found += [
            Row(f"speculative_{name}_{decoding}_accepted", accepted, None, None, "", "of drafts",
                f"{note}; {per_call:.2f} tokens per call of the teacher"),
            Row.compare(f"speculative_{name}_{decoding}", rate, alone, unit="tokens/s",
                        note=f"{note}; drafting to the end of each answer vs. without"),
            Row.compare(f"speculative_{name}_{decoding}_falls_back", as_usual, alone_then,
                        unit="tokens/s", note=f"{note}; until it does not pay vs. without"),
        ]  # fmt: skip
    return found


class AlwaysPays(DraftTiming):
    """Never gives the draft up."""

    def pays(self) -> bool:
        """True."""
        return True


def rates(
    engine: Engine,
    given: Sequence[tuple[Tensor, Tensor]],
    new_tokens: int,
    sampling: SamplingConfig = SAMPLINGS["greedy"],
    codebook: Tensor | None = None,
) -> tuple[float, float]:
    """Tokens/s of an engine with a draft and of its student alone, interleaved.

    Not timed are the prompt, which is computed by the first call and kept, and the query with the
    first token, which the second call takes alone.
    """
    engines, seconds = (engine, Engine(engine.student)), [0.0, 0.0]
    for number, (prompt, query) in enumerate(given):
        for which, each in enumerate(engines):
            times = []
            for count in (1, 1, new_tokens):
                start = time.perf_counter()
                each.generate([prompt], query[None], count, sampling, row_ids=[number],
                              codebook=codebook)  # fmt: skip
                times.append(time.perf_counter() - start)
            seconds[which] += times[2] - times[1]
    tokens = len(given) * (new_tokens - 1)
    return tokens / seconds[0], tokens / seconds[1]
