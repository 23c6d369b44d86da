"""A tokenizer that workers in other processes load for themselves."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from delvm.errors import UserError
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_tokenizer
from delvm.models.cpu.malloc import configure_malloc
from delvm.models.precision import has_native_bf16, resolve_device
from delvm.models.vqgan import VQGAN


@dataclass(frozen=True)
class LoadTokenizer:
    """A tokenizer that each worker loads where it runs.

    Attributes:
        path: of its weights.
        device: auto, cpu or cuda.
        bf16: whether it computes in bfloat16.
        expected_fingerprint: of the tokenizer that the job was planned with.
    """

    path: str
    device: str
    bf16: bool
    expected_fingerprint: str | None = None

    def for_workers(self) -> "tuple[VQGAN, LoadTokenizer]":
        """The tokenizer that a job is planned with, and how its workers load the same one."""
        tokenizer = load_tokenizer(self.path)
        tokenizer.bf16 = self.bf16
        # Workers may run in another directory.
        path = str(Path(self.path).absolute()) if Path(self.path).exists() else self.path
        return tokenizer, replace(self, path=path, expected_fingerprint=fingerprint(tokenizer))

    def __call__(self, worker: int) -> VQGAN:
        """The tokenizer of the worker with this index.

        Raises:
            UserError: it cannot be loaded or has changed since the job was planned, or the device
                does not exist or has no bfloat16.
        """
        kind = resolve_device(self.device)
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
