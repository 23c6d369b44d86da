"""One training run, from its config to its weights: what `delvm train` does."""

import logging
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging

from delvm.data.datasets.images import ImagesConfig
from delvm.data.datasets.sentences import SentencesConfig
from delvm.data.shards.manifest import read_codebook
from delvm.errors import UserError
from delvm.interop.fingerprint import codebook_matches
from delvm.interop.load import load_student, load_tokenizer
from delvm.interop.save import config_dict
from delvm.models.precision import resolve_precision
from delvm.models.transformer import InputEmbedding, Transformer
from delvm.models.vqgan import VQGAN
from delvm.storage import as_path
from delvm.training import strategies
from delvm.training.callbacks.checkpoint import AtomicCheckpoint, GracefulShutdown, RNGState
from delvm.training.callbacks.data_position import TrackDataPosition
from delvm.training.callbacks.model_config import SaveModelConfig
from delvm.training.callbacks.nonfinite_grad import SkipNonFiniteGrad
from delvm.training.callbacks.reconstructions import LogReconstructions
from delvm.training.callbacks.stop_at_step import StopAtStep
from delvm.training.callbacks.throughput import LearningRate, ThroughputMonitor
from delvm.training.compiling import compile_blocks
from delvm.training.config import (
    DistillationModule,
    StrategyName,
    StudentModule,
    TokenizerModule,
    TrainConfig,
)
from delvm.training.datamodules import PictureData, SentenceData
from delvm.training.loggers import build_loggers, finish_loggers
from delvm.training.resume import FREE, check_resumed, checkpoint_of, typed
from delvm.training.student import DistillationTraining, StudentTraining
from delvm.training.tokenizer import TokenizerTraining


def train(config: TrainConfig, folder: Path) -> Path:
    """Train what the config says and export its last weights.

    Args:
        config: the run.
        folder: of the run; gets ``checkpoints/``, ``metrics.csv`` and the exported weights.

    Returns:
        the exported folder, ``folder/tokenizer`` or ``folder/student``.

    Raises:
        UserError: data, teacher or checkpoint are missing or do not fit together.
    """
    _quiet()
    if config.trainer.threads:
        torch.set_num_threads(config.trainer.threads)
    L.seed_everything(config.seed, verbose=False)
    resume = checkpoint_of(config, folder)
    # A resumed run has weights of its own.
    module, data = build(replace(config, start=None) if resume else config)
    model = module.model
    if resume is not None:
        check_resumed(resume, module, config)
    kind = "tokenizer" if isinstance(model, VQGAN) else "student"
    stop = GracefulShutdown()
    trainer = _trainer(config, folder, _callbacks(config, folder, module, data, stop), resume)
    if isinstance(model, Transformer):
        model.config.activation_checkpointing = config.trainer.recompute
        if config.trainer.compile:
            compile_blocks(model)
            module.compiled = True
    if resume is None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / "skipped.jsonl").unlink(missing_ok=True)
    failed = True
    try:
        with stop.install_handlers():
            trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        failed = False
    finally:
        finish_loggers(trainer.loggers, failed)
    stop.raise_if_stopped(folder, trainer.global_step, config.trainer.max_steps)
    strategies.export(trainer, model, folder / kind)
    return folder / kind


def _callbacks(
    config: TrainConfig,
    folder: Path,
    module: TokenizerTraining | StudentTraining,
    data: PictureData | SentenceData,
    stop: GracefulShutdown,
) -> list[Callback]:
    """What happens beside the steps, in this order."""
    c = config.trainer
    module.grad_guard = SkipNonFiniteGrad(data, folder / "skipped.jsonl", c.max_skipped)
    callbacks: list[Callback] = [
        TrackDataPosition(data),
        module.grad_guard,
        RNGState(config.seed),
        SaveModelConfig(config_dict(module.model)),
        LearningRate(),
        ThroughputMonitor(config.module.name, data),
        stop,
    ]
    if isinstance(config.module, TokenizerModule) and isinstance(data, PictureData):
        callbacks.append(LogReconstructions(data.shown(), folder / "pictures"))
        if config.module.average is not None:
            callbacks.append(EMAWeightAveraging(decay=config.module.average, use_buffers=False))
    if c.stop_at is not None:
        callbacks.append(StopAtStep(c.stop_at))
    return [*callbacks, AtomicCheckpoint(folder, c.save_every, c.keep)]


def build(
    config: TrainConfig,
) -> tuple[TokenizerTraining | StudentTraining, PictureData | SentenceData]:
    """The LightningModule and the data module of a run."""
    part, data = config.module, config.data
    if isinstance(part, TokenizerModule):
        if not isinstance(data, ImagesConfig):
            raise UserError(f"data {data.kind} cannot train a {part.name}: set data=images")
        pictures = PictureData(data, config.seed, config.overfit)
        net = config.tokenizer.net
        if (side := pictures.train.image_size) != net.resolution:
            raise UserError(
                f"image size {side} ({data.path}) != resolution {net.resolution} (tokenizer): "
                f"set tokenizer.net.resolution={side}"
            )
        training = TokenizerTraining(_made(VQGAN, net), part, config.optim)
        if config.start is not None:
            _begin(training.model, _started("tokenizer", config.start), config.start)
            training.codebook.init_from_codebook()
        return training, pictures
    assert isinstance(part, StudentModule)
    if not isinstance(data, SentencesConfig):
        raise UserError(f"data {data.kind} cannot train a {part.name}: set data=sentences")
    sentences = SentenceData(data, config.seed, config.overfit)
    student = _student(config, data)
    tokens = sentences.train.token_layout.tokens_per_image
    assert tokens is not None
    rest: dict[str, Any] = {"tokens_per_image": tokens, "tasks": sentences.tasks}
    rest["trained"] = list(sentences.train.mixture_weights)
    kinds = [manifest.images_per_example for manifest in sentences.train.manifests.values()]
    rest["packed"] = 1 in kinds or bool((sentences.val.images_per_example == 1).any())
    if not isinstance(part, DistillationModule):
        return StudentTraining(student, part, config.optim, **rest), sentences
    if config.teacher.checkpoint is None:
        raise UserError("a distillation needs a teacher: set teacher.checkpoint=PATH")
    teacher = load_student(config.teacher.checkpoint)
    _check_ids(teacher, f"teacher {config.teacher.checkpoint}", data.path)
    _check_teacher(teacher, student, data.num_images * tokens)
    return DistillationTraining(student, teacher, part, optim=config.optim, **rest), sentences


def _check_ids(trained: Transformer, name: str, data: str) -> None:
    """Refuse a network that was trained on ids of another tokenizer than the data's.

    Networks of other projects do not name theirs: they are told by the codes they carry, and
    believed where they carry none.
    """
    codebook, ours = read_codebook(as_path(data))
    theirs = trained.tokenizer_fingerprint
    fits = theirs == ours if theirs else codebook_matches(trained, codebook)
    if not fits:
        whose = f"tokenizer {theirs}" if theirs else "a tokenizer with other codes"
        raise UserError(
            f"{name} was trained on ids of {whose}, {data} holds those of {ours}: set "
            "data.path=PATH"
        )


def _check_teacher(teacher: Transformer, student: Transformer, length: int) -> None:
    """Refuse a teacher that cannot read the student's sentences."""
    theirs, ours = teacher.config, student.config
    if theirs.vocab_size != ours.vocab_size:
        raise UserError(
            f"vocab_size {theirs.vocab_size} (teacher) != {ours.vocab_size} (student): "
            "set teacher.checkpoint=PATH to one of the same tokenizer"
        )
    if theirs.max_seq_len < length:
        raise UserError(
            f"a sentence is {length} tokens, the teacher's context {theirs.max_seq_len}: set "
            "data.pairs_per_sentence lower, or teacher.checkpoint=PATH"
        )


def _student(config: TrainConfig, data: SentencesConfig) -> Transformer:
    net = config.student.net
    codebook, fingerprint = read_codebook(as_path(data.path))
    codes = codebook if net.embedding is InputEmbedding.codebook else None
    # Initialized where it is sharded (`FSDP2Strategy.shard`), or each process would hold all of it.
    later = config.strategy.name in (StrategyName.fsdp2, StrategyName.hsdp) and not config.start
    student = _made(Transformer, net, codes, defer_init=later)
    student.tokenizer_fingerprint = fingerprint
    if config.start is not None:
        trained = _started("student", config.start)
        assert isinstance(trained, Transformer)
        _check_ids(trained, f"start={config.start}", data.path)
        _begin(student, trained, config.start)
    return student


def _started(kind: str, start: str) -> VQGAN | Transformer:
    """The trained network that a run begins with."""
    try:
        return load_tokenizer(start) if kind == "tokenizer" else load_student(start)
    except UserError as error:
        raise UserError(str(error).replace(f"set {kind}=PATH", "set start=PATH")) from None


def _begin(model: VQGAN | Transformer, trained: VQGAN | Transformer, start: str) -> None:
    """Give a new network the weights of a trained one, which must be the same function of them."""
    kind = "tokenizer" if isinstance(model, VQGAN) else "student"
    ours, theirs = (config_dict(each)["config"] for each in (model, trained))
    if odd := sorted(key for key in ours if ours[key] != theirs[key] and key not in FREE):
        raise UserError(
            "; ".join(
                f"{key} {typed(theirs[key])} (start={start}) != {typed(ours[key])} ({kind}): "
                f"set {kind}.net.{key}={typed(theirs[key])}"
                for key in odd
            )
        )
    model.load_state_dict(trained.state_dict())


def _made(kind: Any, *parts: Any, **options: Any) -> Any:
    try:
        return kind(*parts, **options)
    except ValueError as error:  # a net that contradicts itself is the user's to mend
        raise UserError(str(error)) from None


def _trainer(
    config: TrainConfig, folder: Path, callbacks: list[Callback], resume: str | None
) -> L.Trainer:
    c = config.trainer
    manual = isinstance(config.module, TokenizerModule)
    precision: Any = resolve_precision(c.precision, c.accelerator)
    return L.Trainer(
        default_root_dir=folder,
        max_steps=c.max_steps,
        accelerator=c.accelerator,
        devices=c.devices,
        num_nodes=c.nodes,
        strategy=strategies.build_strategy(config, precision),
        plugins=strategies.plugins(config),
        precision=precision,
        accumulate_grad_batches=1 if manual else c.accumulate,
        gradient_clip_val=None if manual else config.optim.clip,
        val_check_interval=min(c.val_every, c.max_steps) * (1 if manual else c.accumulate),
        check_val_every_n_epoch=None,
        log_every_n_steps=c.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data modules share out themselves
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=build_loggers(config.logger, folder, resume),
        enable_checkpointing=False,  # `AtomicCheckpoint` writes them
        callbacks=callbacks,
    )


def _quiet() -> None:
    """Silence what Lightning says of choices that were made here on purpose."""
    for text in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*LeafSpec.*",
        ".*isinstance\\(treespec.*",
        ".*your dataloader is not resumable.*",  # its place is kept by the data module
        ".*smaller than the logging interval.*",
        ".*recommended to use .self.log.*sync_dist=True.*",  # what all processes have alike
    ):
        warnings.filterwarnings("ignore", text)
    for part in ("fabric", "pytorch"):
        logging.getLogger(f"lightning.{part}").setLevel(logging.WARNING)
