"""The typed schemas of `delvm train`, mostly made from the signatures of what they build."""

from dataclasses import dataclass, field, make_dataclass
from typing import Any

import lightning as L
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch import loggers
from omegaconf import MISSING
from torch.optim.lr_scheduler import CosineAnnealingLR

from delvm.configs.store import Groups, publish, schema_of
from delvm.data.teacher_cache.store import TeacherCache
from delvm.models.lora import LoRA
from delvm.models.transformer import TransformerConfig
from delvm.models.vqgan import VQGANConfig
from delvm.training import callbacks, losses, strategies
from delvm.training.data.datamodules import ImageDataModule, SentenceDataModule
from delvm.training.data.streaming import StreamingImageDataModule, StreamingSentenceDataModule
from delvm.training.distillation import DistillationModule, load_teacher
from delvm.training.grad_scaler import LossScale
from delvm.training.losses.offline import OfflineTopKLoss
from delvm.training.offline_distillation import OfflineDistillationModule
from delvm.training.on_policy import OnPolicy
from delvm.training.optim import ScheduleFreeMode, WarmupCosine, WeightDecayOn, optimizer_errors
from delvm.training.student import StudentModule
from delvm.training.token_order import RandomTokenOrder
from delvm.training.tokenizer import TokenizerModule


@dataclass
class TrainConfig:
    """One training run. Each group's option brings its own schema, or none if it is foreign.

    Attributes:
        seed: of weights, data order and dropout.
        output_dir: of the run; a sweep gives each job one of its own below it.
        init_from: pretrained weights of the same architecture, whatever `delvm.load_student` or
            `delvm.load_tokenizer` reads; None draws new ones. A resumed run has its own.
        resume: None, auto (the newest checkpoint of the run, if any) or a checkpoint.
        overwrite: whether a run that the directory holds is replaced.
        num_threads: CPU threads of torch; None keeps torch's choice.
    """

    module: Any = MISSING
    tokenizer: Any = MISSING
    student: Any = MISSING
    teacher: Any = MISSING
    data: Any = MISSING
    optimizer: Any = MISSING
    scheduler: Any = MISSING
    callbacks: Any = MISSING
    logger: Any = MISSING
    trainer: Any = MISSING
    strategy: Any = MISSING
    seed: int = 0
    output_dir: str = MISSING
    init_from: str | None = None
    resume: str | None = None
    overwrite: bool = False
    num_threads: int | None = None


@dataclass
class OptimizerConfig:
    """A factory that the module calls with its parameters."""

    _target_: str = MISSING
    _partial_: bool = True
    lr: float = MISSING
    weight_decay: float = 0.0
    decay: WeightDecayOn = WeightDecayOn.matrices

    def validate(self) -> list[str]:
        """Errors of the settings, one line each."""
        return optimizer_errors(self.lr, self.weight_decay, getattr(self, "betas", None))


@dataclass
class AdamWConfig(OptimizerConfig):
    """torch.optim.AdamW; the defaults are DeLVM's."""

    _target_: str = "torch.optim.AdamW"
    lr: float = 1.5e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    fused: bool | None = True


@dataclass
class ScheduleFreeConfig(OptimizerConfig):
    """schedulefree.AdamWScheduleFree (Defazio et al. 2024), which needs no schedule."""

    _target_: str = "schedulefree.AdamWScheduleFree"
    lr: float = 2.5e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    warmup_steps: int = 0


@dataclass
class AdafactorConfig(OptimizerConfig):
    """torch.optim.Adafactor, whose state is a row and a column per matrix."""

    _target_: str = "torch.optim.Adafactor"
    lr: float = 1e-2
    beta2_decay: float = -0.8
    d: float = 1.0
    weight_decay: float = 0.1


def _net_option(name: str, config: type, target: str, **defaults: Any) -> type:
    """The schema of an option of the group ``tokenizer`` or ``student``."""
    net = schema_of(config, target_path=target, **defaults)
    return make_dataclass(name, [("net", net, field(default_factory=net))])


_FACTORIES = {"optimizer": "${optimizer}", "scheduler": "${scheduler}"}
# Given to the trainer by `delvm.commands.instantiate`, from groups of their own.
_OWN_GROUPS = ("strategy", "logger", "callbacks", "plugins")

# Group in conf/ -> its schemas by name.
GROUPS: Groups = {
    "module": {
        "tokenizer": schema_of(TokenizerModule, model="${tokenizer.net}", **_FACTORIES),
        "student": schema_of(StudentModule, model="${student.net}", **_FACTORIES),
        "distillation": schema_of(
            DistillationModule, model="${student.net}", teacher="${teacher}", **_FACTORIES
        ),
        "offline_distillation": schema_of(
            OfflineDistillationModule, model="${student.net}", teacher="${teacher}", **_FACTORIES
        ),
    },
    "module/adapter": {"lora": schema_of(LoRA)},
    "module/token_order": {"random": schema_of(RandomTokenOrder)},
    "module/on_policy": {"on_policy": schema_of(OnPolicy)},
    "module/on_policy/selection": {"tokens": schema_of(losses.TokenSelection)},
    "module/loss": {
        "cross_entropy": schema_of(losses.CrossEntropyLoss),
        "distillation": schema_of(losses.DistillationLoss),
        "offline_top_k": schema_of(OfflineTopKLoss),
    },
    "module/loss/divergence": {
        "kl": schema_of(losses.KLDivergence),
        "jensen_shannon": schema_of(losses.JensenShannon),
    },
    "module/loss/classes": {
        "top_k": schema_of(losses.TopK),
        "clusters": schema_of(losses.CodeClusters),
    },
    "module/loss/selection": {"tokens": schema_of(losses.TokenSelection)},
    "module/loss/hidden": {"matching": schema_of(losses.HiddenStateMatching)},
    "tokenizer": {
        "tokenizer": _net_option(
            "TokenizerOption", VQGANConfig, "delvm.models.vqgan.VQGAN.from_settings"
        )
    },
    "student": {
        "student": _net_option(
            "StudentOption",
            TransformerConfig,
            "delvm.models.transformer.Transformer.from_settings",
            defer_init=False,
        )
    },
    "teacher": {
        "none": schema_of(load_teacher),
        "checkpoint": schema_of(load_teacher, checkpoint=MISSING),
        "offline": schema_of(TeacherCache, path="${data.path}/teacher"),
    },
    "data": {
        "sentences": schema_of(SentenceDataModule, task_weights={}, seed="${seed}"),
        "streaming": schema_of(
            StreamingSentenceDataModule, task_weights={}, shards={}, seed="${seed}"
        ),
        "images": schema_of(ImageDataModule, seed="${seed}"),
        "streaming_images": schema_of(StreamingImageDataModule, shards={}, seed="${seed}"),
    },
    "optimizer": {
        "adamw": AdamWConfig,
        "adafactor": AdafactorConfig,
        "schedulefree": ScheduleFreeConfig,
    },
    "scheduler": {
        "warmup_cosine": schema_of(WarmupCosine, omit=("optimizer", "total_steps"), _partial_=True),
        "cosine": schema_of(
            CosineAnnealingLR,
            omit=("optimizer", "last_epoch"),
            T_max="${trainer.max_steps}",
            _partial_=True,
        ),
    },
    "callbacks": {
        "data_position": schema_of(callbacks.TrackDataPosition),
        "nonfinite_grad": schema_of(callbacks.SkipNonFiniteGrad),
        "rng_state": schema_of(callbacks.RNGState, seed="${seed}"),
        "model_config": schema_of(callbacks.SaveModelConfig),
        "learning_rate": schema_of(callbacks.LearningRate),
        "optimizer_mode": schema_of(ScheduleFreeMode),
        "loss_scale": schema_of(LossScale),
        "throughput": schema_of(callbacks.ThroughputMonitor),
        "step_timer": schema_of(callbacks.StepTimer),
        "task_metrics": schema_of(callbacks.TaskMetrics),
        "alarm": schema_of(callbacks.Alarm),
        "torch_profiler": schema_of(callbacks.TorchProfiler),
        "progress": schema_of(callbacks.ProgressLine),
        "graceful_shutdown": schema_of(callbacks.GracefulShutdown),
        "reconstructions": schema_of(callbacks.LogReconstructions),
        "weight_ema": schema_of(lightning_callbacks.EMAWeightAveraging),
        "stop_at_step": schema_of(callbacks.StopAtStep),
        "checkpoint": schema_of(callbacks.AtomicCheckpoint),
    },
    "logger": {
        "csv": schema_of(loggers.CSVLogger),
        "tensorboard": schema_of(loggers.TensorBoardLogger),
        "wandb": schema_of(loggers.WandbLogger, entity=None, group=None, tags=None, notes=None),
        "mlflow": schema_of(loggers.MLFlowLogger),
    },
    "trainer": {"trainer": schema_of(L.Trainer, target_path="lightning.Trainer", omit=_OWN_GROUPS)},
    "strategy": {
        "single": schema_of(strategies.single_device),
        "ddp": schema_of(strategies.DDP),
        "fsdp": schema_of(strategies.FSDP1Strategy),
        "fsdp2": schema_of(strategies.FSDP2Strategy),
        "hsdp": schema_of(strategies.HSDPStrategy),
    },
}

SCHEMAS = {"train": (TrainConfig, GROUPS)}
publish(__name__, GROUPS)
