"""Names that overrides had before, and their names now: one table per verb."""

# "KEY" (with all keys below it), or "GROUP=OPTION" -> what to type instead.
_SAMPLING = {
    "expected": "decoding",
    "expected=true": "decoding=mean_embedding",
    "expected=false": "decoding=greedy",
}
VERBS = {"gather": "runs"}
RENAMED: dict[str, dict[str, str]] = {
    "prepare": {"output": "output_dir"},
    "encode": {
        "input": "input_dir",
        "output": "output_dir",
        "fast": "bf16",
        "engine": "executor",
        "engine=process": "executor=processes",
        "balance=unbalanced": "balance=none",
        "balance=resample": "balance=oversample",
        "balance.target": "balance.examples_per_task",
    },
    "train": {"data=pixels": "data=images"},
    "runs": {"input": "input_dir"},
    "generate": {**_SAMPLING},
    "evaluate": {
        **_SAMPLING,
        "input": "input_dir",
        "output": "output_dir",
        "subject": "mode",
        "queries": "num_queries",
        "pairs": "num_shots",
        "extractor": "fid_features",
    },
    "inspect": {"input": "input_dir", "output": "output_dir", "pictures": "num_images"},
    "convert": {"output": "output_dir", "to": "output_format", "codes": "codebook_size"},
    "export": {"output": "output_dir"},
}


def new_name(verb: str, key: str, value: str = "") -> str | None:
    """What an old name is called now: a key, or GROUP=OPTION; None if it is not old.

    Args:
        key: dotted, without a sign before it.
        value: what it is set to.
    """
    table = RENAMED.get(verb, {})
    if f"{key}={value}" in table:
        return table[f"{key}={value}"]
    parts = key.split(".")
    for length in range(len(parts), 0, -1):
        if (old := ".".join(parts[:length])) in table:
            return ".".join([table[old], *parts[length:]])
    return None
