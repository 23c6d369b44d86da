"""`delvm encode`: turn image shards into token shards."""

from dataclasses import replace
from pathlib import Path

from delvm.commands.app import verb_main
from delvm.commands.build import build
from delvm.configs.verbs import EncodeConfig
from delvm.data.encode.encode import PreloadedTokenizer, encode
from delvm.data.encode.executors.base import TokenizerFactory, check_executor
from delvm.data.encode.executors.local import local_rank
from delvm.interop.fingerprint import fingerprint
from delvm.interop.load import load_tokenizer
from delvm.interop.tokenizer_factory import LoadTokenizer


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
        counts = [f"{m.task} {m.count:,}" for m in manifests if m.split == split]
        if counts:
            print(f"{split}: {', '.join(counts)} pairs")
    print(f"tokens: {cfg.output_dir} ({tokenizer.config.tokens_per_image} per image)")


main = verb_main(__name__)
