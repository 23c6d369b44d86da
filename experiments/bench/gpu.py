"""Everything on one GPU: training, tokenizer, answers, sharded training, encoding.

Where no CUDA device is visible, that is one line, and nothing is measured. Rows are saved like
those of the other benchmarks, and as a table under the device's name, outputs/bench_gpu_DEVICE.md.
The answers are those of the paper's figure (1,792 tokens of prompt, 256 of answer), next to its
times on hardware that it does not name (300M 2.1 s, 1B 6.2 s), and next to vLLM where it is there.
"""

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delvm.data.encode.shard_task import ShardTask, encode_shard
from delvm.data.image_io import to_tensor
from delvm.evaluation.queries.query_set import decode, encode
from delvm.inference.decoding import GREEDY
from delvm.inference.engine import Engine
from delvm.interop.formats import llama
from delvm.models.attention import AttentionBackend, xformers_available
from delvm.models.precision import measure_peak_flops
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.models.vqgan import VQGAN, VQGANConfig
from delvm.storage import write_text
from delvm.training.compiling import compile_blocks
from delvm.training.losses import CrossEntropyLoss, chunked_linear_loss
from delvm.training.strategies import clip_grads_
from experiments.bench import encode as encode_bench
from experiments.bench import startup
from experiments.bench.harness import Row, table

OUTPUTS = Path("outputs")
SIZES = {"300m": TransformerConfig(), "1b": TransformerConfig(dim=2048, n_heads=16)}
PAPER = {"300m": 2.1, "1b": 6.2}  # seconds per answer
PROMPT, TOKENS, QUERIES = 1536, 256, 16  # tokens of 3 pairs; of an image; queries of a batch
DTYPE = torch.bfloat16


def rows() -> list[Row]:
    """All rows of this machine's GPU; none where there is none."""
    if not torch.cuda.is_available():
        print("gpu: no CUDA device is visible here, so there is nothing to measure")
        return []
    device = torch.device("cuda")
    name = torch.cuda.get_device_name(device)
    found: list[Row] = []
    peak = measure_peak_flops(device, DTYPE)
    found.append(Row("gpu_peak", peak / 1e12, None, None, "", "TFLOP/s", f"{name}: GEMM in bf16"))
    for size, config in SIZES.items():
        for each in variants(device):
            found += attempt(training, size, config, device, peak, *each)
        found += attempt(answers, size, config, device)
        found += attempt(vllm_answers, size, config, device)
    found += attempt(tokenizer_rates, VQGANConfig(), device)
    found += attempt(sharded_step)
    found += attempt(encoding, device)
    write_table(name, found)
    return found


def attempt(measure: Callable[..., Row | list[Row]], *arguments: Any) -> list[Row]:
    """Rows of a measurement; none, and the reason, where it fails: another GPU has less memory."""
    try:
        found = measure(*arguments)
        return found if isinstance(found, list) else [found]
    except RuntimeError as error:  # out of memory is one
        reason = " ".join(str(error).split())[:300]
        print(f"gpu: not measured: {reason}")
        return []
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def write_table(name: str, found: list[Row]) -> None:
    """Write the rows as a table under the name of their device."""
    path = OUTPUTS / f"bench_gpu_{re.sub(r'[^A-Za-z0-9]+', '_', name)}.md"
    write_text(path, f"# {name}\n\ntorch {torch.__version__}\n\n```\n{table(found)}\n```\n")
    print(f"gpu: table in {path}")


def variants(device: torch.device) -> list[tuple[AttentionBackend, bool]]:
    """Attention backends that this device has, each eagerly and compiled."""
    backends = [AttentionBackend.sdpa]
    if xformers_available(device, DTYPE):
        backends.append(AttentionBackend.xformers)
    return [(backend, compiled) for backend in backends for compiled in (False, True)]


def synchronized(call: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Median seconds of a call, to the end of what it has queued; it is called once to warm up."""
    times = []
    for _ in range(1 + repeats):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def memory_gib(device: torch.device) -> float:
    """Peak memory of tensors since the last reset, in GiB."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else 0.0


def training(
    size: str,
    config: TransformerConfig,
    device: torch.device,
    peak: float,
    backend: AttentionBackend = AttentionBackend.sdpa,
    compiled: bool = False,
    rows: int = 8,
    repeats: int = 5,
) -> Row:
    """Tokens/s, model FLOP utilization and peak memory of a training step in bfloat16 autocast."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    model = Transformer(
        replace(config, attention=backend), torch.randn(config.vocab_size, config.codebook_dim)
    )
    model = model.to(device).train()
    if compiled:
        compile_blocks(model)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    length = config.max_seq_len
    ids = torch.randint(config.vocab_size, (rows, length), device=device)
    targets, counted = ids[:, 1:].flatten(), torch.ones(rows * (length - 1), device=device)
    loss_fn = CrossEntropyLoss()

    def step() -> None:
        with torch.autocast(device.type, DTYPE):
            hidden = model.forward_hidden(ids)[:, :-1].flatten(0, 1)
            total = chunked_linear_loss(
                hidden, model.head.weight, loss_fn, (targets, counted), compiled=compiled
            )
        (total / len(targets)).backward()
        clip_grads_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    rate = rows * length / synchronized(step, device, repeats)
    flops = rate * model.flops_per_token(length)
    kind = f"{backend.value}{'_compiled' if compiled else ''}"
    note = (
        f"training, {rows} x {length:,} tokens, fused AdamW: {flops / peak:.1%} of the GEMM peak, "
        f"{memory_gib(device):.1f} GiB"
    )
    return Row(f"gpu_train_{size}_{kind}", rate, None, None, "", "tokens/s", note)


def answers(
    size: str,
    config: TransformerConfig,
    device: torch.device,
    tokens: int = TOKENS,
    prompt_tokens: int = PROMPT,
    queries: int = QUERIES,
    repeats: int = 3,
) -> list[Row]:
    """Seconds per answer, with and without CUDA graphs, alone and in a batch that shares pairs."""
    student = random_student(config, device)
    prompt = torch.randint(config.vocab_size, (prompt_tokens,), device=device)
    given = torch.randint(config.vocab_size, (queries, tokens), device=device)
    found = []
    for compiled in (False, True) if device.type == "cuda" else (False,):
        for count in (1, queries):
            # Nothing is kept, so that the prompt is computed each time, as in the paper.
            engine = Engine(student, max_prefixes=0, compile=compiled)

            def call(engine: Engine = engine, count: int = count) -> Tensor:
                return engine.generate([prompt], given[:count], tokens, GREEDY)

            seconds = synchronized(call, device, repeats) / count
            kind = f"{'graphs' if compiled else 'eager'}_{count}"
            note = f"bf16, {prompt_tokens} + {tokens} tokens, {tokens} new, batch of {count}"
            peer = PAPER.get(size)
            ratio = None if peer is None else seconds / peer
            found.append(
                Row(f"gpu_answer_{size}_{kind}", seconds, peer, ratio,
                    "ratio <= 0.1" if compiled and peer else "", "s", f"{note}; vs. the paper")
            )  # fmt: skip
    return found


def random_student(config: TransformerConfig, device: torch.device) -> Transformer:
    """A student of random weights in bfloat16, in evaluation mode."""
    torch.manual_seed(0)
    codebook = torch.randn(config.vocab_size, config.codebook_dim)
    return Transformer(config, codebook).to(device, DTYPE).eval().requires_grad_(False)


VLLM = """
import json, sys, time
from vllm import LLM, SamplingParams
folder, codes, prompt, tokens = sys.argv[1], *map(int, sys.argv[2:])
llm = LLM(model=folder, skip_tokenizer_init=True, dtype="bfloat16", enable_prefix_caching=False,
          max_model_len=prompt + tokens)
sampling = SamplingParams(temperature=0, max_tokens=tokens, min_tokens=tokens, ignore_eos=True,
                          detokenize=False, allowed_token_ids=list(range(codes)))
ids = [{"prompt_token_ids": [(7 * i) % codes for i in range(prompt)]}]
times = []
for _ in range(4):
    start = time.perf_counter()
    llm.generate(ids, sampling, use_tqdm=False)
    times.append(time.perf_counter() - start)
print("SECONDS", json.dumps(sorted(times[1:])[1]))
"""


def vllm_answers(size: str, config: TransformerConfig, device: torch.device) -> list[Row]:
    """Seconds per answer of vLLM on the exported student, ids in and out; none without vLLM."""
    if importlib.util.find_spec("vllm") is None:
        print("gpu: vLLM is not installed, so there is no row of it")
        return []
    student = random_student(config, device)
    with tempfile.TemporaryDirectory() as tmp:
        llama.write(student, Path(tmp, "llama"), DTYPE)
        del student
        torch.cuda.empty_cache()
        words = [str(Path(tmp, "llama")), config.vocab_size, PROMPT + TOKENS, TOKENS]
        # A process of its own: it takes most of the GPU's memory.
        done = subprocess.run(
            [sys.executable, "-c", VLLM, *map(str, words)], capture_output=True, text=True
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("SECONDS ")]
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        print(f"gpu: vLLM failed, so there is no row of it: {reason}")
        return []
    seconds = float(json.loads(lines[-1].removeprefix("SECONDS ")))
    note = f"vLLM, bf16, one answer of {TOKENS} tokens after {PROMPT + TOKENS}; vs. the paper"
    return [Row.compare(f"gpu_answer_{size}_vllm", seconds, PAPER[size], unit="s", note=note)]


def tokenizer_rates(
    config: VQGANConfig, device: torch.device, batch: int = 64, repeats: int = 5
) -> list[Row]:
    """Images/s of the tokenizer in both directions, from pixels on the host and back."""
    torch.manual_seed(0)
    tokenizer = VQGAN(config).to(device).eval()
    shape = (batch, config.resolution, config.resolution, 3)
    pixels = to_tensor(list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)))
    ids = torch.randint(config.num_embeddings, (batch, config.tokens_per_image))
    found = []
    for bf16 in (False, True):
        tokenizer.bf16 = bf16
        calls: dict[str, Callable[[], object]] = {
            "encode": lambda: encode(tokenizer, pixels),
            "decode": lambda: decode(tokenizer, ids),
        }
        for name, call in calls.items():
            rate = batch / synchronized(call, device, repeats)
            kind = "bf16" if bf16 else "fp32"
            note = f"f16_8192, {config.resolution} px, batches of {batch}, with the copies"
            found.append(Row(f"gpu_{name}_{kind}", rate, None, None, "", "images/s", note))
    return found


def sharded_words(root: Path, trainer: str = "gpu") -> list[str]:
    """The words of `delvm train` for three steps of fsdp2, which writes below ``root``."""
    words = ["strategy=fsdp2", f"trainer={trainer}", "trainer.max_steps=3", "trainer.devices=1"]
    return [*startup.train_overrides(root), *words]


def sharded_step() -> Row:
    """`delvm train strategy=fsdp2` of three steps, from start to exit."""
    with tempfile.TemporaryDirectory() as tmp:
        startup.write_shards(Path(tmp, "tokens"))
        command = [sys.executable, "-m", "delvm", "train", *sharded_words(Path(tmp))]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds = time.perf_counter() - start
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it printed nothing"]
        raise RuntimeError(f"train strategy=fsdp2 exited with {done.returncode}: {lines[-1]}")
    note = "delvm train strategy=fsdp2 student=tiny, three steps on one GPU, from start to exit"
    return Row("gpu_fsdp2", seconds, None, None, "", "s", note)


def encoding(
    device: torch.device, config: VQGANConfig | None = None, pairs: int = 512, batch_size: int = 32
) -> Row:
    """`encode_shard`, the loop of `delvm encode`, in bfloat16, compared with the bare tokenizer."""
    torch.manual_seed(0)
    tokenizer = VQGAN(config or VQGANConfig()).to(device).eval()
    tokenizer.bf16 = True
    with tempfile.TemporaryDirectory() as tmp, torch.inference_mode():
        job = encode_bench.make_job(Path(tmp), tokenizer, pairs, batch_size)
        plan = job.token_manifests[0]
        file = Path(str(job.output_dir)) / plan.split / plan.task / plan.shards[0]["file"]
        images = job.count(ShardTask(0, 0)) * plan.images_per_example
        batch = min(images, batch_size * plan.images_per_example)
        pixels = torch.rand(batch, 3, plan.image_size, plan.image_size, device=device)

        def shard() -> None:
            file.unlink(missing_ok=True)
            encode_shard(job, ShardTask(0, 0), tokenizer)

        ours = images / synchronized(shard, device, 3)
        bare = batch / synchronized(lambda: tokenizer.encode(pixels), device, 3)
    note = f"tars of PNG to a shard of tokens, bf16, batches of {batch}; vs. pixels on the device"
    return Row.compare("gpu_encode_shards", ours, bare, unit="images/s", note=note)
