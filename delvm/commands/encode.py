"""`delvm encode`: turn image shards into token shards."""

from dataclasses import dataclass, replace
from pathlib import Path

import hydra
import torch
from omegaconf import DictConfig

from delvm.commands.app import run_job
from delvm.commands.build import build
from delvm.commands.devices import pick
from delvm.configs.store import config_root
from delvm.configs.verbs import Device, EncodeConfig
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
class LoadTokenizer:
    """A tokenizer that each worker loads where it runs.

    Attributes:
        path: of its weights.
        requested: its device.
        bf16: whether it computes in bfloat16.
        expected_fingerprint: of the tokenizer that the job was planned with.
    """

    path: str
    requested: Device
    bf16: bool
    expected_fingerprint: str | None = None

    @property
    def device(self) -> str:
        """Its device as it was requested."""
        return self.requested.value

    def __call__(self, worker: int) -> VQGAN:
        """The tokenizer of the worker with this index.

        Raises:
            UserError: it cannot be loaded or has changed since the job was planned, or the device
                does not exist or has no bfloat16.
        """
        kind = pick(self.requested)
        device = f"cuda:{worker % torch.cuda.device_count()}" if kind == "cuda" else kind
        if self.bf16 and not has_native_bf16(kind):
            raise UserError(f"bf16=true needs bfloat16, which this {kind} lacks: set bf16=false")
        if kind == "cpu":
            configure_malloc()
        tokenizer = load_tokenizer(self.path, device)
        tokenizer.bf16 = self.bf16
        if self.expected_fingerprint not in (None, found := fingerprint(tokenizer)):
            raise UserError(
                f"tokenizer={self.path} is {found} here, but the job was planned with "
                f"{self.expected_fingerprint}: set tokenizer to a file that does not change and "
                "that all workers see"
            )
        return tokenizer


@hydra.main(version_base="1.3", config_path=str(config_root("encode")), config_name="encode")
def main(cfg: DictConfig) -> float | None:
    """Encode as the config says."""
    return run_job("encode", run, cfg)


def run(cfg: EncodeConfig) -> None:
    """Write the shards, and print what was written."""
    # Workers may run in another directory.
    path = str(Path(cfg.tokenizer).absolute()) if Path(cfg.tokenizer).exists() else cfg.tokenizer
    load = LoadTokenizer(path, cfg.device, cfg.bf16)
    executor = check_executor(build(cfg.executor, "executor"))
    if executor.in_process:
        tokenizer = load(local_rank())
    else:  # for the plan alone
        tokenizer = load_tokenizer(cfg.tokenizer)
        tokenizer.bf16 = cfg.bf16
    mark = fingerprint(tokenizer)
    factory: TokenizerFactory = PreloadedTokenizer(tokenizer)
    if not executor.in_process:
        factory = replace(load, expected_fingerprint=mark)
    manifests = encode(
        cfg.input_dir,
        cfg.output_dir,
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
    print(f"tokens: {cfg.output_dir} ({tokenizer.config.tokens_per_image} per image)")
