"""Names that overrides had before, and their names now: one table per verb.

A row counts only where the old name is unknown: a class of another package may have such a key.
"""

# "KEY" (with all keys below it), or "GROUP=OPTION" -> what to type instead.
_SAMPLING = {
    "expected": "decoding",
    "expected=true": "decoding=mean_embedding",
    "expected=false": "decoding=greedy",
}
VERBS = {"gather": "runs"}
RENAMED: dict[str, dict[str, str]] = {
    "prepare": {
        "output": "output_dir",
        # source=shapes has had counts under these two names.
        "source.val": "source.val_fraction or source.num_val",
        "source.test": "source.test_fraction or source.num_test",
        "source.crops": "source.num_crops",
        "source.cut": "source.scene_cut_threshold",
        "source.frames": "source.clip_length",
        "source.hole": "source.hole_size",
        "source.keypoints": "source.min_keypoints",
        "source.masks": "source.max_masks",
        "source.pictures": "source.group_size",
        "source.tars": "source.from_tars",
        "source.tuples": "source.annotations",
        "source.whole": "source.whole_image",
    },
    "encode": {
        "input": "input_dir",
        "output": "output_dir",
        "fast": "bf16",
        "engine": "executor",
        "engine=process": "executor=processes",
        "balance=unbalanced": "balance=none",
        "balance=resample": "balance=oversample",
        "balance.target": "balance.examples_per_task",
        "engine.restarts": "executor.max_restarts",
        "engine.cpus": "executor.cpus_per_worker",
        "engine.gpus": "executor.gpus_per_worker",
        "engine.folder": "executor.log_dir",
        "engine.timeout": "executor.timeout_min",
        "engine.memory": "executor.mem_gb",
        "engine.slurm": "executor.slurm_additional",
        "engine.poll": "executor.poll_s",
    },
    "train": {
        "data=pixels": "data=images",
        "experiment=demo_alone": "experiment=demo_student_no_kd",
        "output": "output_dir",
        "start": "init_from",
        "overfit": "trainer.overfit_batches",
        "data.workers": "data.num_workers",
        "data.val_pairs": "data.num_val_examples",
        "data.window": "data.shuffle_window_shards",
        "data.weights": "data.task_weights",
        "optim": "optimizer",
        "optim.warmup": "scheduler.warmup_ratio",
        "optim.min_lr_ratio": "scheduler.min_lr_ratio",
        "optim.clip": "trainer.gradient_clip_val",
        "trainer.stop_at": "callbacks.stop_at_step.step",
        "trainer.nodes": "trainer.num_nodes",
        "trainer.accumulate": "trainer.accumulate_grad_batches",
        "trainer.val_every": "trainer.val_check_interval",
        "trainer.log_every": "trainer.log_every_n_steps",
        "trainer.save_every": "callbacks.checkpoint.every_n_train_steps",
        "trainer.keep": "callbacks.checkpoint.keep_latest_k",
        "trainer.max_skipped": "callbacks.nonfinite_grad.max_nonfinite_steps",
        "trainer.recompute": "student.net.activation_checkpointing",
        "trainer.compile": "module.compile",
        "trainer.threads": "num_threads",
        "strategy.backend": "strategy.process_group_backend",
        "strategy.shard": "strategy.shard_size",
        "strategy.gather": "strategy.param_dtype",
        "logger.project": "logger.wandb.project",
        "logger.offline": "logger.wandb.offline",
        "student.net.width": "student.net.dim",
        "student.net.layers": "student.net.n_layers",
        "student.net.heads": "student.net.n_heads",
        "student.net.mlp_width": "student.net.ffn_dim",
        "student.net.context": "student.net.max_seq_len",
        "student.net.embedding=own": "student.net.embedding=learned",
        "student.net.init=ordinary": "student.net.init=gpt2",
        "student.net.attention=blockwise": "student.net.attention=cpu_flash",
        "tokenizer.net.signed_pixels": "tokenizer.net.pixel_range",
        "tokenizer.net.normalize_codes": "tokenizer.net.use_l2_norm",
        "tokenizer.net.lone_attention": "tokenizer.net.attn_in_single_block_levels",
        "module.misread": "module.token_noise",
        "module.label_smoothing": "module.loss.label_smoothing",
        "module.z_loss": "module.loss.z_loss",
        "module.gt_weight": "module=distillation module.loss.gt_weight",
        "module.kd_weight": "module=distillation module.loss.kd_weight",
        "module.temperature": "module=distillation module.loss.temperature",
        "module.direction": "module=distillation module.loss.direction",
        "module.l1": "module.l1_weight",
        "module.l2": "module.l2_weight",
        "module.foreground": "module.foreground_weight",
        "module.perceptual": "module.perceptual_weight",
        "module.distance": "module.perceptual_loss",
        "module.adversarial": "module.disc_weight",
        "module.adversarial_start": "module.disc_start",
        "module.discriminator_width": "module.disc_dim",
        "module.discriminator_layers": "module.disc_num_layers",
        "module.codebook": "module.codebook_weight",
        "module.ema_decay": "module.codebook_ema_decay",
        "module.revive_after": "module.dead_code_after",
        "module.revive_by": "module.dead_code_reset",
        "module.revive_by=chance": "module.dead_code_reset=random",
        "module.revive_by=error": "module.dead_code_reset=error",
        "module.average": "callbacks=[default,weight_ema] callbacks.weight_ema.decay",
    },
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
