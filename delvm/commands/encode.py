"""`delvm encode`: turn image shards into token shards."""

from pathlib import Path

from delvm.commands.devices import pick
from delvm.commands.schema import EncodeConfig
from delvm.data.corpus import encode
from delvm.errors import UserError
from delvm.interop.checkpoints import load_tokenizer
from delvm.interop.fingerprint import fingerprint
from delvm.models.precision import has_bf16


def run(cfg: EncodeConfig) -> None:
    """Write the shards, and say what was written."""
    device = pick(cfg.device)
    tokenizer = load_tokenizer(cfg.tokenizer, device)
    tokenizer.fast = cfg.fast
    if cfg.fast and not has_bf16(device):
        raise UserError(f"fast=true needs bfloat16, which this {device} has not: set fast=false")
    manifests = encode(
        Path(cfg.input),
        Path(cfg.output),
        tokenizer,
        fingerprint(tokenizer),
        balance=cfg.balance,
        splits=cfg.splits,
        batch_size=cfg.batch_size,
        seed=cfg.seed,
        overwrite=cfg.overwrite,
    )
    for split in cfg.splits:
        counts = {m.task: m.count for m in manifests if m.split == split}
        listed = ", ".join(f"{task} {count:,}" for task, count in counts.items())
        print(f"{split}: {listed} pairs")
    print(f"tokens: {cfg.output} ({tokenizer.config.tokens_per_image} a picture)")
