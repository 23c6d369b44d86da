"""`delvm inspect`: look at shards, and find what is silently wrong with them."""

from pathlib import Path

from delvm.commands.devices import pick
from delvm.commands.schema import InspectConfig
from delvm.errors import CheckFailed
from delvm.storage import as_path


def run(cfg: InspectConfig) -> None:
    """Look, and say what was seen.

    Raises:
        CheckFailed: something is flagged.
    """
    # Imported here: torch takes seconds, which a mistake in the config need not wait for.
    from delvm.evaluation.shard_inspection import inspect_shards, shard_kind
    from delvm.interop.load import load_tokenizer

    root, output = as_path(cfg.input), Path(cfg.output)
    tokens = shard_kind(root) == "tokens"
    tokenizer = load_tokenizer(cfg.tokenizer, pick(cfg.device)) if tokens else None
    report = inspect_shards(
        root, tokenizer, output_dir=output, num_images=cfg.pictures, seed=cfg.seed
    )
    for split, tasks in report["splits"].items():
        for task, facts in tasks.items():
            left = f", {facts['rejected']:,} rejected" if facts["rejected"] else ""
            print(
                f"{split}/{task}: {facts['count']:,} examples in {facts['shards']:,} shards{left}"
            )
            for side, usage in facts.items():
                if isinstance(usage, dict):
                    print(
                        f"  {side}s: {usage['num_used']:,} of {usage['codebook_size']:,} codes, "
                        f"perplexity {usage['perplexity']:,.0f}, {usage['entropy_bits']:.2f} bits "
                        f"per token; code {usage['most_frequent']} is "
                        f"{usage['most_frequent_fraction']:.1%}"
                    )
    print(f"pictures and numbers: {output}")
    if flags := report["flags"]:
        listed = "\n  - ".join(["", *flags])
        raise CheckFailed(f"{len(flags)} flagged in {root}:{listed}")
    print("nothing suspicious")
