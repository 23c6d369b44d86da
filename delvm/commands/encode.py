"""`delvm encode`: turn image shards into token shards."""

from delvm.commands.app import verb_main
from delvm.commands.build import build
from delvm.configs.verbs import EncodeConfig
from delvm.data.encode.encode import encode
from delvm.data.encode.executors.base import check_executor
from delvm.data.encode.executors.local import local_rank
from delvm.interop.fingerprint import fingerprint
from delvm.interop.tokenizer_factory import LoadTokenizer


def run(cfg: EncodeConfig) -> None:
    """Write the shards, and print what was written."""
    executor = check_executor(build(cfg.executor, "executor"))
    load, factory = LoadTokenizer(cfg.tokenizer, cfg.device, cfg.bf16), None
    if executor.in_process:
        tokenizer = load(local_rank())
    else:
        tokenizer, factory = load.for_workers()
    manifests = encode(
        cfg.input_dir,
        cfg.output_dir,
        tokenizer,
        fingerprint(tokenizer),
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
