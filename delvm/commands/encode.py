"""`delvm encode`: turn image shards into token shards, or store a teacher's distributions."""

from delvm.commands.app import verb_main
from delvm.commands.build import build
from delvm.configs.verbs import EncodeConfig
from delvm.data.datasets.packing import PackedDataset
from delvm.data.datasets.sentences import SentenceDataset, SentencesConfig
from delvm.data.encode.encode import encode
from delvm.data.encode.executors.base import check_executor, rank_from_env
from delvm.data.encode.executors.local import local_rank
from delvm.interop.fingerprint import fingerprint
from delvm.interop.tokenizer_factory import LoadTokenizer


def run(cfg: EncodeConfig) -> None:
    """Write the shards, and print what was written."""
    if cfg.teacher is not None:
        _store_teacher(cfg, cfg.teacher)
        return
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


def _store_teacher(cfg: EncodeConfig, path: str) -> None:
    """Write a teacher's distributions, and print how large they are."""
    from delvm.interop.load import load_student
    from delvm.models.precision import resolve_device
    from delvm.training.teacher_cache import plan_cache, write_cache

    asked, rank = cfg.teacher_cache, rank_from_env()
    config = SentencesConfig(
        path=cfg.output_dir,
        pairs_per_sentence=asked.pairs_per_sentence,
        images_per_sentence=asked.images_per_sentence,
        task_weights=asked.task_weights,
        shuffle_window_shards=asked.shuffle_window_shards,
        packing=asked.packing,
        shuffle_annotations=asked.shuffle_annotations,
    )
    sentences = (PackedDataset if asked.packing else SentenceDataset)(config, cfg.seed)
    device = resolve_device(cfg.device)
    device = f"cuda:{local_rank()}" if device == "cuda" else device
    teacher = load_student(path, device, asked.precision, key="teacher")
    plan = plan_cache(sentences, teacher, asked.precision, asked.num_sentences, asked.top_k)
    write_cache(
        asked.path,
        plan,
        sentences,
        teacher,
        batch_size=asked.batch_size,
        overwrite=cfg.overwrite,
        rank=rank.rank,
        world_size=rank.world_size,
    )
    num_bytes = plan.num_sentences * plan.dtype.itemsize
    per_token = num_bytes / plan.num_sentences / (plan.sentence_length - 1)
    print(
        f"teacher: {asked.path} ({plan.num_sentences:,} sentences, {num_bytes / 1e6:,.1f} MB, "
        f"{per_token:.1f} bytes per token)"
    )


main = verb_main(__name__)
