"""The numbers of DeLVM's and LVM's training configs, each beside where ours has it.

Facts only: DeLVM's are of InternLM/configs and of the defaults that these leave to its code
(github.com/ggjy/DeLVM), LVM's of the training command in its README, of `vqlm_7b` in
EasyLM/models/llama/llama_model.py and of the defaults of EasyLM/optimizers.py and EasyLM/data.py
(github.com/ytongbai/LVM).
"""

from typing import Any, NamedTuple


class Fact(NamedTuple):
    """One setting of a reference.

    Attributes:
        key: in the reference's config; one in brackets is fixed in its code.
        value: there.
        ours: where ours has it: a path in the composed config, a name that `test_recipes.DERIVED`
            computes from it, or "" where it has no counterpart.
        our_value: where it differs.
        why: it differs, or has no counterpart.
    """

    key: str
    value: Any
    ours: str
    our_value: Any = None
    why: str = ""


def _no(key: str, value: Any, why: str) -> Fact:
    return Fact(key, value, "", None, why)


SPEED = "changes only how fast it is"
LABELS = "its collate masks label 0, so its code 0 is never trained: its bug"
OTHER_ORDER = "another generator draws other weights and another order in any case"

DELVM = [
    Fact("data.seq_len", 2048, "student.net.max_seq_len"),
    Fact("data.seq_len", 2048, "tokens per sentence"),
    Fact("data.micro_bsz", 16, "data.batch_size"),
    Fact("data.micro_num", 1, "trainer.accumulate_grad_batches"),
    Fact("[torchrun --nproc_per_node]", 8, "ranks"),
    Fact("[micro_bsz x micro_num x seq_len x ranks]", 262144, "tokens per step"),
    Fact("data.total_steps", 40000, "trainer.max_steps"),
    Fact("data.pack_sample_into_one", False, "data.packing"),
    Fact("[number of workers]", 4, "data.num_workers"),
    Fact("data.valid_every", 0, "steps per validation", 1000, "it does not change the training"),
    _no("data.valid_micro_num", 1, "unused there: it does not validate"),
    _no("data.train_one_epoch", False, "the stream of sentences never ends"),
    _no("data.skip_batches", "", "non-finite gradients are skipped, no other batches"),
    _no("data.rampup_batch_size", "", "off there"),
    _no("data.min_length", 50, "leaves out files of fewer sentences; ours leaves out no task"),
    _no("data.empty_cache_and_diag_interval", 10000, SPEED),
    _no("data.diag_outlier_ratio", 1.1, "diagnoses slow GPUs"),
    Fact(
        "[mixture]", "by size", "data.task_weights", {},
        "files are concatenated there, so tasks count by their size; ours all alike, which is the "
        "same after balance=augment (docs/reproduce.md)",
    ),
    Fact("[labels]", "code 0 masked", "module.input_weight", 1.0, LABELS),
    Fact("grad_scaler.fp16.initial_scale", 2**16, "callbacks.loss_scale.init_scale"),
    Fact("grad_scaler.fp16.growth_interval", 1000, "callbacks.loss_scale.growth_interval"),
    Fact("grad_scaler.growth_factor", 2, "callbacks.loss_scale.growth_factor"),
    Fact("grad_scaler.backoff_factor", 0.5, "callbacks.loss_scale.backoff_factor"),
    Fact("grad_scaler.hysteresis", 2, "callbacks.loss_scale.hysteresis"),
    Fact(
        "grad_scaler.fp16.min_scale", 1, "callbacks.nonfinite_grad.max_nonfinite_steps", 20,
        "torch's scale has no lower bound; ours ends a run that overflows 20 times in a row",
    ),
    _no("grad_scaler.max_scale", 2**24, "torch's scale has no upper bound, an overflow lowers it"),
    Fact("hybrid_zero_optimizer.clip_grad_norm", 1.0, "trainer.gradient_clip_val"),
    _no("hybrid_zero_optimizer.overlap_sync_grad", True, SPEED),
    _no("hybrid_zero_optimizer.overlap_sync_param", True, SPEED),
    _no("hybrid_zero_optimizer.reduce_bucket_size", 2**29, SPEED),
    Fact("loss.label_smoothing", 0, "module.loss.label_smoothing"),
    Fact("[optimizer]", "torch.optim.AdamW", "optimizer._target_"),
    Fact("adam.lr", 1.5e-4, "optimizer.lr"),
    Fact("adam.adam_beta1", 0.9, "optimizer.betas.0"),
    Fact("adam.adam_beta2", 0.95, "optimizer.betas.1"),
    _no("adam.adam_beta2_c", 0, "0 keeps beta2 as it is"),
    Fact("adam.adam_eps", 1e-8, "optimizer.eps"),
    Fact("adam.weight_decay", 0.1, "optimizer.weight_decay"),
    Fact("[parameters that decay]", "all", "optimizer.decay"),
    Fact("lr_scheduler.total_steps", 40000, "steps of the schedule"),
    Fact("lr_scheduler.warmup_ratio", 0.0056, "scheduler.warmup_ratio"),
    Fact("[warmup_ratio x total_steps]", 224, "warmup steps"),
    Fact("lr_scheduler.eta_min", 1.5e-5, "lowest learning rate"),
    _no("lr_scheduler.init_steps", 0, "steps without learning before the warmup, none there"),
    _no("lr_scheduler.last_epoch", -1, "starts at the first step"),
    Fact("model.checkpoint", False, "student.net.activation_checkpointing"),
    Fact("model.num_attention_heads", 8, "student.net.n_heads"),
    Fact("model.vocab_size", 8192, "student.net.vocab_size"),
    Fact("[codes of the tokenizer]", 8192, "tokenizer.net.num_embeddings"),
    Fact("model.hidden_size", 1024, "student.net.dim"),
    Fact("model.num_layers", 22, "student.net.n_layers"),
    Fact("model.mlp_ratio", 8 / 3, "mlp ratio before rounding to 256"),
    Fact("model.norm_type", "rmsnorm", "student.net.norm"),
    Fact("model.layer_norm_epsilon", 1e-5, "student.net.norm_eps"),
    Fact(
        "model.dtype", "torch.float16", "trainer.precision", "16-mixed",
        "the same products; ours casts float32 weights, there the optimizer keeps a float32 copy",
    ),
    Fact("model.lvm_config.enable", "codebook", "student.net.embedding"),
    _no("model.lvm_config.embedding_cfg.freeze_vq_model", True, "codebooks are always frozen"),
    Fact("model.lvm_config.embedding_cfg.embedding_dim", 1024, "student.net.dim"),
    Fact("[drop_rate]", 0.0, "student.net.dropout"),
    Fact("[attn_drop_rate]", 0.0, "student.net.dropout"),
    Fact("[bias of q, k, v and the output]", True, "student.net.bias"),
    Fact("[bias of the MLP]", False, "student.net.mlp_bias"),
    Fact("[rotary base]", 10000, "student.net.rope_base"),
    Fact("[use_scaled_init and its deviations]", "reference", "student.net.init"),
    Fact("model.use_flash_attn", "auto", "student.net.attention"),
    _no("model.embed_grad_scale", 1, "1 is off"),
    _no("model.apply_post_layer_norm", False, "the architecture is pre-norm"),
    _no("model.embed_split_hidden", True, "of tensor parallelism, which neither uses"),
    _no("model.parallel_output", True, "of tensor parallelism, which neither uses"),
    _no("model.num_chunks", 1, "of pipeline parallelism, which neither uses"),
    Fact(
        "parallel.zero1", 8, "strategy._target_", "delvm.training.strategies.DDP",
        "shards the optimizer's state, with the same result: fsdp2 has no loss scale",
    ),
    _no("parallel.pipeline.size", 1, "1 is off"),
    _no("parallel.pipeline.interleaved_overlap", True, "of pipeline parallelism"),
    _no("parallel.sequence_parallel", False, "off there"),
    Fact("cudnn_deterministic", False, "trainer.deterministic", None, "null is torch's, false"),
    Fact("cudnn_benchmark", False, "trainer.benchmark", None, "null is torch's, false"),
    Fact(
        "ckpt.checkpoint_every", 10000, "callbacks.checkpoint.every_n_train_steps", None,
        "null is one per validation, every 1,000 steps: less is lost",
    ),
    _no("ckpt.oss_snapshot_freq", 0, "off there"),
    _no("ckpt.async_upload", True, "of their object store"),
    Fact("[seed]", 1024, "seed", 0, OTHER_ORDER),
]  # fmt: skip

KD = [
    Fact("kd_config.gt_weight", 1.0, "module.loss.gt_weight"),
    Fact("kd_config.kd_weight", 1.0, "module.loss.kd_weight"),
    Fact("kd_config.temperature", 1, "module.loss.temperature"),
    Fact("[kd_config.inverse]", "forward", "module.loss.direction"),
    Fact(
        "teacher.dtype",
        "torch.float16",
        "teacher.precision",
        "fp32",
        "float32 weights are cast to float16 for each product, as the student's are",
    ),
]
# Of the teacher in kd_1b_to_300m.py, which experiment=pretrain_1b trains.
TEACHER = {
    "model.hidden_size": 2048,
    "model.lvm_config.embedding_cfg.embedding_dim": 2048,
    "model.num_attention_heads": 16,
}
FITS_80_GB = "16 sentences take 78 GiB: two batches of 8 have the same gradient"
CHANGED_1B = [
    Fact("data.micro_bsz", 16, "data.batch_size", 8, FITS_80_GB),
    Fact("data.micro_num", 1, "trainer.accumulate_grad_batches", 2, FITS_80_GB),
]
NO_CONFIG = "the paper has 80M parameters, its repository no config of them: as deep as 300M"
CHANGED_80M = [
    Fact("model.hidden_size", None, "student.net.dim", 512, NO_CONFIG),
    Fact("model.num_attention_heads", None, "student.net.n_heads", 8, NO_CONFIG),
    Fact("model.lvm_config.embedding_cfg.embedding_dim", None, "student.net.dim", 512, NO_CONFIG),
]

LVM = [
    Fact("--total_steps", 400000, "batches"),
    Fact("--optimizer.accumulate_gradient_steps", 4, "trainer.accumulate_grad_batches"),
    Fact("[updates]", 100000, "trainer.max_steps"),
    Fact("--train_dataset.json_dataset.seq_length", 4096, "tokens per sentence"),
    Fact("--train_dataset.json_dataset.batch_size", 32, "sentences per batch on all ranks"),
    Fact("[seq_length x batch_size x accumulate]", 524288, "tokens per step"),
    Fact("--jax_distributed.local_device_ids", 8, "trainer.devices"),
    Fact("--mesh_dim", "delvm.training.strategies.HSDPStrategy", "strategy._target_"),
    Fact("--dtype", "bf16-mixed", "trainer.precision"),
    Fact("--optimizer.type", "torch.optim.AdamW", "optimizer._target_"),
    Fact("--optimizer.adamw_optimizer.weight_decay", 0.1, "optimizer.weight_decay"),
    Fact("[weight_decay_exclusions: none]", "all", "optimizer.decay"),
    Fact("--optimizer.adamw_optimizer.lr", 1.5e-4, "optimizer.lr"),
    Fact("--optimizer.adamw_optimizer.end_lr", 3e-5, "lowest learning rate"),
    Fact("--optimizer.adamw_optimizer.lr_warmup_steps", 8000, "warmup steps"),
    Fact("--optimizer.adamw_optimizer.lr_decay_steps", 288000, "scheduler.decay_steps"),
    Fact(
        "[adamw_optimizer.init_lr]", 0.0, "first learning rate", 1.5e-4 / 8000,
        "ours begins with the second step of its warmup: an update of 0 learns nothing",
    ),
    Fact("[adamw_optimizer.b1]", 0.9, "optimizer.betas.0"),
    Fact("[adamw_optimizer.b2]", 0.95, "optimizer.betas.1"),
    Fact("[optax.adamw eps]", 1e-8, "optimizer.eps"),
    Fact("[adamw_optimizer.clip_gradient]", 1.0, "trainer.gradient_clip_val"),
    _no("[adamw_optimizer.bf16_momentum]", False, "moments are float32 here too"),
    _no("[adamw_optimizer.multiply_by_parameter_scale]", False, "off there"),
    Fact(
        "--train_dataset.json_dataset.tokenizer_processes", 16, "data.num_workers", 4,
        "shards hold ids, there is no base64 to decode",
    ),
    _no("--train_dataset.text_processor.fields", ",{tokens},", "all tokens count in the loss"),
    _no("[add_bos_token, add_eos_token]", False, "neither has tokens between sentences"),
    Fact(
        "[rows]", "cut from one stream", "data.images_per_sentence", 16,
        "there a row may begin within a sentence; ours are complete sentences",
    ),
    Fact(
        "[mixture]", "by size", "data.task_weights", {},
        "one shuffled file there; set data.task_weights to the numbers of images",
    ),
    Fact("--log_freq", 10, "trainer.log_every_n_steps", 20, "of steps, not batches; " + SPEED),
    Fact("--save_model_freq", 1000, "trainer.val_check_interval", 4000,
         "batches; a checkpoint of 7B with its optimizer is 78 GB"),
    _no("--save_milestone_freq", 2000, "callbacks.checkpoint.keep_latest_k keeps the newest ones"),
    _no("--checkpointer.save_optimizer_state", True, "always"),
    _no("[eval_steps]", 0, "ours validates, which does not change the training"),
    Fact("[seed]", 42, "seed", 0, OTHER_ORDER),
    Fact("vqlm_7b.vocab_size", 8292, "student.net.vocab_size"),
    Fact("[codes of the tokenizer]", 8192, "tokenizer.net.num_embeddings"),
    Fact("vqlm_7b.hidden_size", 4096, "student.net.dim"),
    Fact("vqlm_7b.intermediate_size", 11008, "student.net.ffn_dim"),
    Fact("vqlm_7b.num_hidden_layers", 32, "student.net.n_layers"),
    Fact("vqlm_7b.num_attention_heads", 32, "student.net.n_heads"),
    Fact("vqlm_7b.max_sequence_length", 4096, "student.net.max_seq_len"),
    Fact("vqlm_7b.initializer_range: 0.02", "normal", "student.net.init"),
    Fact("vqlm_7b.rms_norm_eps", 1e-6, "student.net.norm_eps"),
    Fact("[tie_word_embeddings: false]", "learned", "student.net.embedding"),
    Fact("[use_bias]", False, "student.net.bias"),
    Fact("[use_bias of the MLP]", False, "student.net.mlp_bias"),
    Fact("[precompute_freqs_cis theta]", 10000, "student.net.rope_base"),
    Fact("[resid_pdrop, embd_pdrop, attn_pdrop]", 0.0, "student.net.dropout"),
    Fact("vqlm_7b.remat_attention: nothing_saveable", 1, "student.net.activation_checkpointing"),
    Fact("vqlm_7b.remat_mlp: nothing_saveable", 1, "student.net.activation_checkpointing"),
    _no("vqlm_7b.remat_block", "", "off there"),
    _no("vqlm_7b.scan_attention", True, "its way to blockwise attention; ours is fused"),
    _no("vqlm_7b.scan_mlp", True, SPEED),
    _no("vqlm_7b.scan_query_chunk_size", 2048, SPEED),
    _no("vqlm_7b.scan_key_chunk_size", 2048, SPEED),
    _no("vqlm_7b.scan_mlp_chunk_size", 2048, SPEED),
    _no("vqlm_7b.use_cache", True, "of generation"),
]  # fmt: skip


def recipes() -> dict[str, list[Fact]]:
    """The facts of each experiment that is a recipe of a reference."""

    def changed(facts: list[Fact]) -> list[Fact]:
        other = {fact.key: fact for fact in facts}
        return [other.get(fact.key, fact) for fact in DELVM]

    one_b = [
        Fact(key, value, fact.ours)
        for key, value in TEACHER.items()
        for fact in DELVM
        if fact.key == key
    ]
    return {
        "pretrain_300m": DELVM,
        "pretrain_1b": changed([*one_b, *CHANGED_1B]),
        "pretrain_80m": changed(CHANGED_80M),
        "kd_1b_to_300m": [*DELVM, *KD],
        "lvm_7b": LVM,
    }
