"""`delvm encode`: turn image shards into token shards."""

from dataclasses import dataclass, replace
from pathlib import Path

from delvm.commands.build import build
from delvm.commands.devices import pick
from delvm.commands.schema import Device, EncodeConfig
from delvm.data.encode.encode import PreloadedTokenizer, encode
from delvm.data.encode.executors.base import TokenizerFactory, check_executor
from delvm.data.encode.executors.local import local_rank
from delvm.errors import UserError
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_tokenizer
from delvm.models.cpu.malloc import configure_malloc
from delvm.models.precision import has_native_bf16
from delvm.models.vqgan import VQGAN


@dataclass(frozen=True)
class Loaded:
    """A tokenizer that each worker loads where it is."""

    path: str
    wanted: Device
    fast: bool
    mark: str | None = None

    @property
    def device(self) -> str:
        """Its device, as it was asked for."""
        return self.wanted.value

    def __call__(self, worker: int) -> VQGAN:
        """The tokenizer of a worker with this number.

        Raises:
            UserError: it cannot be loaded, has changed since the job was planned, or there is no
                such device, or none with bfloat16 for fast=true.
        """
        import torch

        kind = pick(self.wanted)
        device = f"cuda:{worker % torch.cuda.device_count()}" if kind == "cuda" else kind
        if self.fast and not has_native_bf16(kind):
            raise UserError(f"fast=true needs bfloat16, which this {kind} has not: set fast=false")
        if kind == "cpu":
            configure_malloc()
        tokenizer = load_tokenizer(self.path, device)
        tokenizer.bf16 = self.fast
        if self.mark is not None and (found := fingerprint(tokenizer)) != self.mark:
            raise UserError(
                f"tokenizer={self.path} is {found} here, the job was planned with {self.mark}: "
                "set tokenizer to a file that does not change and that all workers see"
            )
        return tokenizer


def run(cfg: EncodeConfig) -> None:
    """Write the shards, and say what was written."""
    # Workers may work in another folder.
    path = str(Path(cfg.tokenizer).absolute()) if Path(cfg.tokenizer).exists() else cfg.tokenizer
    loaded = Loaded(path, cfg.device, cfg.fast)
    executor = check_executor(build(cfg.executor, "executor"))
    if executor.in_process:
        tokenizer = loaded(local_rank())
    else:  # for the plan alone
        tokenizer = load_tokenizer(cfg.tokenizer)
        tokenizer.bf16 = cfg.fast
    mark = fingerprint(tokenizer)
    factory: TokenizerFactory = (
        PreloadedTokenizer(tokenizer) if executor.in_process else replace(loaded, mark=mark)
    )
    manifests = encode(
        cfg.input,
        cfg.output,
        tokenizer,
        mark,
        balance=cfg.balance,
        splits=cfg.splits,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        overwrite=cfg.overwrite,
        executor=executor,
        factory=factory,
    )
    for split in cfg.splits:
        counts = {m.task: m.count for m in manifests if m.split == split}
        listed = ", ".join(f"{task} {count:,}" for task, count in counts.items())
        if listed:
            print(f"{split}: {listed} pairs")
    print(f"tokens: {cfg.output} ({tokenizer.config.tokens_per_image} a picture)")
