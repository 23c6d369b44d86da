"""Names in files written by earlier versions, and the names that replaced them.

This is the only table of aliases. There is one dict per kind of file, old name -> new name, and
where the values of an enum were renamed as well, a second dict ``*_VALUES``: new key -> {old value:
new value}. Readers apply them with `rename_keys`, so old weights, checkpoints, manifests and runs
keep loading. Writers write new names only.

A new name must never be an old name of the same table: applying a table twice changes nothing.
"""

from collections.abc import Hashable, Mapping
from typing import Any, TypeAlias

Keys: TypeAlias = Mapping[str, str]
Values: TypeAlias = Mapping[str, Mapping[Any, Any]]

# Fields of `VQGANConfig`: "config" in a tokenizer's config.json, and in its checkpoints.
VQGAN_CONFIG: dict[str, str] = {
    "signed_pixels": "pixel_range",
    "normalize_codes": "use_l2_norm",
    "lone_attention": "attn_in_single_block_levels",
}
VQGAN_CONFIG_VALUES: dict[str, dict[Any, Any]] = {
    "pixel_range": {False: "unit", True: "signed"},
}

# Fields of `TransformerConfig`: "config" in a student's config.json, and in its checkpoints.
TRANSFORMER_CONFIG: dict[str, str] = {
    "width": "dim",
    "layers": "n_layers",
    "heads": "n_heads",
    "mlp_width": "ffn_dim",
    "context": "max_seq_len",
}
TRANSFORMER_CONFIG_VALUES: dict[str, dict[Any, Any]] = {
    "embedding": {"own": "learned"},
    "init": {"ordinary": "gpt2"},
    "attention": {"blockwise": "cpu_flash"},
}

# Fields of `TokenSpace`: "space" in a student's config.json, in its checkpoints, and under "delvm"
# in the config.json of a Llama export.
TOKEN_SPACE: dict[str, str] = {"codes": "codebook_size"}

# Lightning checkpoints: the keys at the top (a data module's state is under its class name), the
# keys under "callbacks" (class names too), and buffers in "state_dict" and in the state that weight
# averaging keeps. The weights of a network ("model.*") were never renamed.
CHECKPOINT: dict[str, str] = {
    "SentenceData": "SentenceDataModule",
    "PictureData": "ImageDataModule",
}
CHECKPOINT_CALLBACKS: dict[str, str] = {
    "Checkpoints": "AtomicCheckpoint",
    "Guard": "SkipNonFiniteGrad",
    "Randomness": "RNGState",
}
CHECKPOINT_STATE: dict[str, str] = {
    "codebook.mass": "codebook.cluster_size",
    "codebook.total": "codebook.embed_avg",
    "codebook.idle": "codebook.steps_unused",
    "codebook.age": "codebook.steps_since_reset",
    "codebook.started": "codebook.initialized",
}
CHECKPOINT_STATE_PREFIXES: dict[str, str] = {"adversary.": "discriminator."}

# manifest.json of a directory of shards.
MANIFEST: dict[str, str] = {"pictures": "images_per_example", "parts": "chunks", "fast": "bf16"}
MANIFEST_VALUES: dict[str, dict[Any, Any]] = {"kind": {"pairs": "images"}}
# "balance" in such a manifest: how a task was balanced.
MANIFEST_BALANCE: dict[str, str] = {"target": "examples_per_task"}
MANIFEST_BALANCE_VALUES: dict[str, dict[Any, Any]] = {"mode": {"resample": "oversample"}}

# "settings" in such a manifest: the fields of our own data sources, and the names in their lists.
# Sources of other packages are left alone.
SOURCE_SETTINGS: dict[str, str] = {
    "val": "val_fraction",
    "test": "test_fraction",
    "crops": "num_crops",
    "cut": "scene_cut_threshold",
    "frames": "clip_length",
    "hole": "hole_size",
    "keypoints": "min_keypoints",
    "masks": "max_masks",
    "pictures": "group_size",
    "tars": "from_tars",
    "tuples": "annotations",
    "whole": "whole_image",
}
SOURCE_WORDS: dict[str, str] = {"colourisation": "colorization", "grey": "grayscale"}

# Settings of our own sources that such a manifest does not have, and what they did without it.
# Those under "" are settings of each source.
SOURCE_DEFAULTS: dict[str, dict[str, Any]] = {
    "": {"resize": "rounded"},
    "derived": {"hole_kind": "box", "patch_size": 32, "patch_fraction": [0.25, 0.5]},
    "hdvila": {"video_list": None, "strides": [], "random_start": False},
    "paired": {"label_targets": None},
    "video": {"strides": [], "random_start": False},
}

# NAME.json of a finished chunk, and the directory it is in while `delvm prepare` is unfinished.
CHUNK_RESULT: dict[str, str] = {"pictures": "images_per_example"}
CHUNK_DIRS: dict[str, str] = {"parts": "chunks"}

# The order of a data set's stream: "order" in the state of a data module, in checkpoints.
DATA_ORDER: dict[str, str] = {"window": "shuffle_window_shards", "shares": "mixture_weights"}

# Tasks: a directory of shards keeps the name it was written with, and `delvm.tasks.get` finds it.
TASKS: dict[str, str] = {"colourisation": "colorization"}

# Words that seed the random generators of data sources: `seed_word` goes back to the old ones.
SEED_WORDS: dict[str, str] = {"colourisation": "colorization", "colours": "colors"}

# metrics.json of an evaluation: "settings", the results of tasks and students, and "codes" of a
# tokenizer's evaluation.
METRICS_SETTINGS: dict[str, str] = {
    "input": "input_dir",
    "queries": "num_queries",
    "pairs": "num_shots",
    "vocab_size": "codebook_size",
}
# What an evaluation of students did before these settings existed.
METRICS_SETTINGS_ADDED = {
    "num_prompts": 1,
    "num_draws": 1,
    "prompt_selection": "random",
    "shared_prompt": False,
    "guidance": 1.0,
}
METRICS: dict[str, str] = {
    "primary": "primary_metric",
    "queries": "num_queries",
    "pool": "pool_size",
    "closed": "gap_closed",
    "standing": "summary",
    "closed_half": "half_gap_closed",
}
CODEBOOK_USAGE: dict[str, str] = {
    "codes": "codebook_size",
    "tokens": "num_tokens",
    "used": "num_used",
    "most": "most_frequent",
    "most_share": "most_frequent_fraction",
}


def rename_keys(
    values: Mapping[str, Any], keys: Keys, enum_values: Values | None = None
) -> dict[str, Any]:
    """Old keys, and old values of enums, under their new names; everything else stays as it is.

    An old key stays where its new name is given too: the reader then refuses it as unknown.
    """
    renamed: dict[str, Any] = {}
    for key, value in values.items():
        new = keys.get(key, key)
        taken = new != key and (new in values or new in renamed)
        renamed[key if taken else new] = value
    for key, table in (enum_values or {}).items():
        if isinstance(value := renamed.get(key), Hashable) and value in table:
            renamed[key] = table[value]
    return renamed


def restore_keys(
    values: Mapping[str, Any], keys: Keys, enum_values: Values | None = None
) -> dict[str, Any]:
    """The inverse of `rename_keys`: for hashes that must not change when a name does."""
    old_keys = {new: old for old, new in keys.items()}
    restored = {}
    for key, value in values.items():
        old_values = {new: old for old, new in (enum_values or {}).get(key, {}).items()}
        known = isinstance(value, Hashable) and value in old_values
        restored[old_keys.get(key, key)] = old_values[value] if known else value
    return restored


def upgrade_source_settings(source: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a data source in a manifest under the names of this version."""
    ours = ("coco_pose", "derived", "gopro", "hdvila", "images", "laion", "paired", "rain13k")
    if source not in (*ours, "sa1b", "video"):
        return dict(settings)
    defaults = SOURCE_DEFAULTS[""] | SOURCE_DEFAULTS.get(source, {})
    return defaults | {
        key: [SOURCE_WORDS.get(each, each) for each in value] if isinstance(value, list) else value
        for key, value in rename_keys(settings, SOURCE_SETTINGS).items()
    }


def seed_word(name: str) -> str:
    """The word that seeds a random generator: examples must not change when a name does."""
    return {new: old for old, new in SEED_WORDS.items()}.get(name, name)


def upgrade_model_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of a model: its config.json, or what a checkpoint has under ``delvm``."""
    upgraded = dict(metadata)
    if isinstance(config := metadata.get("config"), Mapping):
        upgraded["config"] = (
            rename_keys(config, VQGAN_CONFIG, VQGAN_CONFIG_VALUES)
            if metadata.get("kind") == "tokenizer"
            else rename_keys(config, TRANSFORMER_CONFIG, TRANSFORMER_CONFIG_VALUES)
        )
    if isinstance(space := metadata.get("space"), Mapping):
        upgraded["space"] = rename_keys(space, TOKEN_SPACE)
    return upgraded


def upgrade_checkpoint(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """A Lightning checkpoint under the names of this version.

    Call it on what is read, before anything looks inside: to load the model, and to resume.
    Tensors are shared with ``checkpoint``, not copied.
    """
    upgraded = rename_keys(checkpoint, CHECKPOINT)
    if isinstance(metadata := upgraded.get("delvm"), Mapping):
        upgraded["delvm"] = upgrade_model_metadata(metadata)
    for name in ("callbacks", "state_dict", "current_model_state"):
        if not isinstance(state := upgraded.get(name), Mapping):
            continue
        table = CHECKPOINT_CALLBACKS if name == "callbacks" else _state_table(state)
        # Left alone where nothing changes: a state dict has attributes that a copy would lose.
        if state.keys() & table.keys():
            upgraded[name] = rename_keys(state, table)
    return upgraded


def _state_table(state: Mapping[str, Any]) -> dict[str, str]:
    """Old -> new names of the tensors in a state dict."""
    table = dict(CHECKPOINT_STATE)
    for old, new in CHECKPOINT_STATE_PREFIXES.items():
        table |= {key: new + key.removeprefix(old) for key in state if str(key).startswith(old)}
    return table


def upgrade_metrics(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics.json of an evaluation under the names of this version."""
    upgraded = dict(metrics)
    if isinstance(settings := metrics.get("settings"), Mapping):
        settings = rename_keys(settings, METRICS_SETTINGS)
        added = METRICS_SETTINGS_ADDED if "num_shots" in settings else {}
        upgraded["settings"] = added | settings
    for group in ("tasks", "students"):
        if isinstance(results := metrics.get(group), Mapping):
            upgraded[group] = {
                name: _upgrade_result(result) if isinstance(result, Mapping) else result
                for name, result in results.items()
            }
    if isinstance(summary := metrics.get("all"), Mapping):
        upgraded["all"] = _upgrade_usage(summary)
    return upgraded


def _upgrade_usage(summary: Any) -> Any:
    """The measurements of a tokenizer on some images."""
    if isinstance(summary, Mapping) and isinstance(codes := summary.get("codes"), Mapping):
        return {**summary, "codes": rename_keys(codes, CODEBOOK_USAGE)}
    return summary


def _upgrade_result(result: Mapping[str, Any]) -> dict[str, Any]:
    """The results of a task or a student."""
    upgraded = {key: _upgrade_usage(value) for key, value in rename_keys(result, METRICS).items()}
    if isinstance(summary := upgraded.get("summary"), Mapping):
        upgraded["summary"] = rename_keys(summary, METRICS)
    if isinstance(students := upgraded.get("students"), Mapping):
        upgraded["students"] = {name: rename_keys(each, METRICS) for name, each in students.items()}
    return upgraded
