"""What distillation costs: its step, its memory, stored distributions, and sampled answers.

Each variant trains in its own process and their steps are interleaved: the ``training_step`` of
the module that ``module=...`` names, with fused AdamW, bfloat16 autocast and compiled blocks and
losses, as `delvm train trainer.compile=true` and ``teacher.compile=true`` have them.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from delvm.inference.engine import Engine
from delvm.models.cpu.malloc import configure_malloc
from delvm.models.precision import has_native_bf16
from delvm.models.transformer import Transformer, TransformerConfig
from delvm.training.compiling import compile_blocks
from delvm.training.distillation import DistillationModule
from delvm.training.losses import CrossEntropyLoss, DistillationLoss
from delvm.training.losses.offline import OfflineTopKLoss
from delvm.training.offline_distillation import OfflineDistillationModule
from delvm.training.on_policy import OnPolicy, find_answers
from delvm.training.strategies import clip_grads_
from delvm.training.student import StudentModule
from experiments.bench.harness import Row, added_memory, processes, take_step

DTYPE = torch.bfloat16
TOP_K = 16  # stored per token
VARIANTS = ("student", "teacher", "distillation", "offline", "on_policy")


@dataclass(frozen=True)
class Setting:
    """Sizes of the networks and of a batch: sentences of tokens, in images of some tokens each."""

    student: TransformerConfig
    teacher: TransformerConfig
    sentences: int = 4
    length: int = 512
    tokens_per_image: int = 64
    compiled: bool = True
    repeats: int = 9


SETTING = Setting(  # 36M and 79M parameters, 8,192 codes
    TransformerConfig(dim=512, n_layers=8, n_heads=8, max_seq_len=512),
    TransformerConfig(dim=512, n_layers=22, n_heads=8, max_seq_len=512),
)


def rows() -> list[Row]:
    """Steps and memory of distillation next to those of their parts."""
    return compare(SETTING, *measure(SETTING)) if has_native_bf16("cpu") else []


def measure(setting: Setting) -> tuple[dict[str, float], dict[str, float]]:
    """Median seconds of a step of each variant, and the MiB that it adds to a process."""
    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with processes({name: partial(build, name, setting) for name in VARIANTS}) as pools:
        for number in range(2 + setting.repeats):
            for name, pool in pools.items():
                seconds = pool.apply(take_step)
                if number >= 2:  # the first steps compile and touch their memory
                    times[name].append(seconds)
        used = {name: pool.apply(added_memory) for name, pool in pools.items()}
    return {name: statistics.median(each) for name, each in times.items()}, used


def compare(setting: Setting, t: dict[str, float], used: dict[str, float]) -> list[Row]:
    """The rows, from seconds and MiB of each variant."""
    sizes = [sum(p.numel() for p in build_net(each, "meta").parameters()) for each in nets(setting)]
    # The teacher's frozen codebook is among its weights.
    weights = sum(each.nbytes for each in build_net(setting.teacher, "meta").state_dict().values())
    memory = used["student"] + weights / 2**20
    how = "compiled" if setting.compiled else "eager"
    note = (
        f"{sizes[0] / 1e6:.3g}M student, {sizes[1] / 1e6:.3g}M teacher, {setting.sentences} x "
        f"{setting.length} tokens of {setting.student.vocab_size:,}, bfloat16 autocast, {how}"
    )
    return [
        Row.compare("distillation_step", t["distillation"], t["student"] + t["teacher"],
                    goal="ratio <= 1.1", unit="s",
                    note=f"{note}; vs. a step of the student alone ({t['student']:.3g} s) + the "
                         f"teacher's forward pass ({t['teacher']:.3g} s)"),
        Row.compare("distillation_memory", used["distillation"], memory,
                    goal="ratio <= 1.15", unit="MiB",
                    note="memory that training adds to the peak of a process; vs. training the "
                         f"student alone ({used['student']:.0f} MiB) + the teacher's weights "
                         f"({weights / 2**20:.0f} MiB in float32)"),
        Row.compare("distillation_offline_step", t["offline"], t["student"],
                    goal="ratio <= 1.1", unit="s",
                    note=f"from {TOP_K} stored probabilities per token; vs. the student alone"),
        Row.compare("distillation_on_policy", t["on_policy"], t["distillation"], unit="s",
                    note=f"seconds per answer of {setting.tokens_per_image} tokens that the "
                         f"student samples through the engine, {setting.sentences} at a time; "
                         "vs. a distillation step"),
    ]  # fmt: skip


def nets(setting: Setting) -> tuple[TransformerConfig, TransformerConfig]:
    """Student and teacher."""
    return setting.student, setting.teacher


def build_net(config: TransformerConfig, device: str = "cpu") -> Transformer:
    """A network of random weights."""
    with torch.device(device):
        return Transformer(config, torch.randn(config.vocab_size, config.codebook_dim))


def build(name: str, setting: Setting) -> Callable[[], float]:
    """The timed step of a variant, in its process."""
    configure_malloc()
    torch.manual_seed(0)
    size = setting.sentences, setting.length
    batch = {
        "input_ids": torch.randint(setting.student.vocab_size, size),
        "images_per_example": torch.full(size[:1], 2),
    }
    if name == "teacher":
        return teacher_forward(setting, batch["input_ids"][:, :-1])
    if name == "on_policy":
        return sampling(setting, batch["input_ids"])
    student = build_net(setting.student)
    optimizer: Any = None  # the module's own is not used
    loss: Any
    module: StudentModule
    if name == "student":
        loss = CrossEntropyLoss()
        module = StudentModule(student, loss, optimizer, compile=setting.compiled)
    elif name == "distillation":
        loss, teacher = DistillationLoss(), build_teacher(setting)
        module = DistillationModule(student, teacher, loss, optimizer, compile=setting.compiled)
    else:
        loss, teacher_cache = OfflineTopKLoss(), cast(Any, None)
        module = OfflineDistillationModule(
            student, teacher_cache, loss, optimizer, compile=setting.compiled
        )
        batch |= stored(setting)
    module.data = cast(
        Any, SimpleNamespace(tokens_per_image=setting.tokens_per_image, is_packed=False)
    )
    return training_step(module, batch)


def build_teacher(setting: Setting) -> Transformer:
    """The frozen teacher."""
    teacher = build_net(setting.teacher).eval().requires_grad_(False)
    if setting.compiled:
        compile_blocks(teacher)
    return teacher


def stored(setting: Setting) -> dict[str, Tensor]:
    """A teacher's distributions as `delvm.data.teacher_cache` gives them."""
    shape = setting.sentences, setting.length - 1
    log_probs = torch.randn(*shape, setting.student.vocab_size).log_softmax(-1)
    values, ids = log_probs.topk(TOP_K)
    tail = torch.log1p(-values.exp().sum(-1, keepdim=True))
    return {"teacher_ids": ids, "teacher_log_probs": torch.cat((values, tail), dim=-1)}


def training_step(module: StudentModule, batch: dict[str, Tensor]) -> Callable[[], float]:
    """Forward, backward, clipping, AdamW; returns the seconds."""
    model: Transformer = module.model.train()
    if module.compile_model:
        compile_blocks(model)
    weights = [each for each in module.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)

    def step() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", DTYPE):
            loss = module.training_step(batch, 0)
        module.step_metrics.clear()
        loss.backward()
        clip_grads_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    return step


def teacher_forward(setting: Setting, ids: Tensor) -> Callable[[], float]:
    """A forward pass of the teacher to its logits."""
    teacher = build_teacher(setting)

    def step() -> float:
        start = time.perf_counter()
        with torch.no_grad(), torch.autocast("cpu", DTYPE):
            teacher(ids)
        return time.perf_counter() - start

    return step


def sampling(setting: Setting, ids: Tensor) -> Callable[[], float]:
    """Sampling the last image of each sentence after all before it; returns seconds per image."""
    student, n = build_net(setting.student).eval(), setting.tokens_per_image
    image = torch.arange(setting.length // n).expand(len(ids), -1)
    answers = find_answers(torch.zeros_like(image), image % 2 == 1)

    def step() -> float:
        with torch.autocast("cpu", DTYPE):
            sampled = OnPolicy().sample(Engine(student), ids, answers, n, len(ids))
        return sampled.seconds / sampled.num_sampled

    return step
