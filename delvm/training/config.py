"""What a training run can be told: plain dataclasses, which the configs in conf/ are held to."""

from dataclasses import dataclass, field
from enum import Enum

from delvm.data.datasets.images import ImagesConfig
from delvm.data.datasets.sentences import SentencesConfig
from delvm.models.transformer import TransformerConfig
from delvm.models.vqgan import VQGANConfig
from delvm.training.codebook_ema import DeadCodeReset
from delvm.training.losses import KLDirection

WANTED_VGG = (
    "set module.vgg_weights=PATH to a VGG16 with torchvision's names (vgg16-397923af.pth of "
    "download.pytorch.org/models), or module.distance=ms_ssim"
)


class LoggerName(Enum):
    """Where curves and pictures go besides files: wandb comes with TensorBoard, csv is alone."""

    csv = "csv"
    tensorboard = "tensorboard"
    wandb = "wandb"


class StrategyName(Enum):
    """How the work is spread over devices.

    ``single`` is one device. ``ddp`` has a copy of everything on each. ``fsdp2`` spreads weights,
    gradients and the optimizer over all of them; ``hsdp`` over those of a node, of which each
    other node has a copy; ``fsdp`` is torch's first way to do the same, on GPUs alone.
    """

    single = "single"
    ddp = "ddp"
    fsdp2 = "fsdp2"
    hsdp = "hsdp"
    fsdp = "fsdp"


class ParamDtype(Enum):
    """Numbers in which spread weights travel; auto is bfloat16 where products are taken in it."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Perceptual(Enum):
    """Which perceptual distance: ``lpips`` needs the weights of a VGG16, ``ms_ssim`` nothing."""

    ms_ssim = "ms_ssim"
    lpips = "lpips"


@dataclass
class ModuleConfig:
    """What is trained, and with which losses."""

    name: str = "student"


@dataclass
class TokenizerModule(ModuleConfig):
    """Train the tokenizer to draw what it was shown.

    Attributes:
        l1, l2: weights of the mean absolute and squared error, pixels in [0, 1].
        perceptual: weight of the perceptual distance.
        distance: which one.
        vgg_weights: file of VGG16's weights under torchvision's names, for lpips.
        adversarial: weight of the discriminator's verdict beside the adaptive weight; 0 = none.
        adversarial_start: step from which it counts and the discriminator learns.
        discriminator_width, discriminator_layers: its first channels and its halvings.
        average: decay of the moving average of the weights, which is what is
            validated and exported; None = the weights themselves.
        codebook: weight of the codebook and commitment terms.
        ema_decay: decay of the codes' moving averages; None = codes learn by gradient.
        revive_after: steps without use after which a code is moved onto a feature of the batch;
            None = never.
        revive_by: any feature of the batch alike, or the worst matched ones first.
        foreground: extra weight of the pixels that are not black; thin lines on black, as in
            pose targets, are otherwise the first thing to vanish.
    """

    name: str = "tokenizer"
    l1: float = 1.0
    l2: float = 1.0
    perceptual: float = 0.1
    distance: Perceptual = Perceptual.ms_ssim
    vgg_weights: str | None = None
    adversarial: float = 0.0
    adversarial_start: int = 2000
    discriminator_width: int = 64
    discriminator_layers: int = 3
    average: float | None = None
    codebook: float = 1.0
    ema_decay: float | None = 0.99
    revive_after: int | None = 100
    revive_by: DeadCodeReset = DeadCodeReset.random
    foreground: float = 0.0


@dataclass
class StudentModule(ModuleConfig):
    """Train a transformer to continue visual sentences.

    Attributes:
        input_weight: weight of the tokens of input pictures beside those of targets (1 = paper).
        label_smoothing: share of the target spread evenly over the vocabulary.
        z_loss: weight of the squared log-partition.
        misread: most of a target's tokens that the student reads as random codes (0 = paper).
    """

    name: str = "student"
    input_weight: float = 1.0
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    misread: float = 0.0


@dataclass
class DistillationModule(StudentModule):
    """Train it on the truth and on a frozen teacher: gt_weight x CE + kd_weight x T^2 x KL.

    Attributes:
        gt_weight: weight of the cross-entropy to the truth.
        kd_weight: weight of the divergence from the teacher.
        temperature: T, which softens both distributions.
        direction: of the divergence.
    """

    name: str = "distillation"
    gt_weight: float = 1.0
    kd_weight: float = 1.0
    temperature: float = 1.0
    direction: KLDirection = KLDirection.forward


@dataclass
class TokenizerConfig:
    """The tokenizer to be trained."""

    net: VQGANConfig = field(default_factory=VQGANConfig)


@dataclass
class StudentConfig:
    """The student (or teacher) to be trained."""

    net: TransformerConfig = field(default_factory=TransformerConfig)


@dataclass
class TeacherConfig:
    """The frozen teacher of a distillation: whatever `delvm.load_student` reads."""

    checkpoint: str | None = None


@dataclass
class OptimConfig:
    """AdamW and its schedule, a warm-up and half a cosine; the defaults are the reference's.

    Attributes:
        lr: highest learning rate.
        min_lr_ratio: last learning rate over the highest.
        warmup: share of the steps spent on warming up, in [0, 1).
        clip: largest norm of the gradient; None = no clipping.
    """

    name: str = "adamw"
    lr: float = 1.5e-4
    min_lr_ratio: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: float = 0.1
    warmup: float = 0.0056
    clip: float | None = 1.0


@dataclass
class TrainerConfig:
    """How long, and on what.

    Attributes:
        max_steps: steps of the optimizer; the learning rate's schedule counts on all of them.
        stop_at: step after which this job ends, to be resumed by another; None = max_steps.
        accelerator: cpu, gpu or auto.
        devices: devices of that kind in each node, a process each.
        nodes: machines, each with as many devices.
        precision: auto, 32-true, bf16-mixed, bf16-true or 16-mixed; auto is bf16-mixed where the
            hardware multiplies in bf16.
        accumulate: batches whose gradients make one step.
        val_every: steps between validations.
        log_every: steps between two points of a curve.
        save_every: steps between two checkpoints; None = one at each validation.
        keep: the newest checkpoints that stay, beside the best.
        max_skipped: steps in a row whose gradient may be no number before the run ends.
        recompute: of each so many blocks of a student, one is computed again in the backward
            pass, which takes less memory and more time; 0 = none.
        compile: whether the network goes through torch.compile.
        threads: CPU threads; None leaves the choice to torch.
    """

    max_steps: int = 1000
    stop_at: int | None = None
    accelerator: str = "auto"
    devices: int = 1
    nodes: int = 1
    precision: str = "auto"
    accumulate: int = 1
    val_every: int = 200
    log_every: int = 20
    save_every: int | None = None
    keep: int = 2
    max_skipped: int = 20
    recompute: int = 0
    compile: bool = False
    threads: int | None = None

    @property
    def world(self) -> int:
        """Devices in all, which is processes in all."""
        return self.devices * self.nodes


@dataclass
class StrategyConfig:
    """How the work is spread over devices.

    Attributes:
        backend: what carries tensors between processes, gloo or nccl; None = nccl between GPUs.
    """

    name: StrategyName = StrategyName.single
    backend: str | None = None


@dataclass
class ShardedConfig(StrategyConfig):
    """Weights, gradients and the optimizer in parts, one a device.

    Attributes:
        shard: devices that hold one copy of the weights among them; None = all, or under hsdp
            those of a node.
        gather: numbers in which weights travel; gradients are summed in float32 in any case.
    """

    name: StrategyName = StrategyName.fsdp2
    shard: int | None = None
    gather: ParamDtype = ParamDtype.auto


@dataclass
class LoggerConfig:
    """Where curves go.

    Attributes:
        project: name of the project (wandb).
        offline: whether wandb keeps to files (`wandb sync` sends them later).
    """

    name: LoggerName = LoggerName.csv
    project: str = "delvm"
    offline: bool = True


@dataclass
class TrainConfig:
    """One training run.

    Attributes:
        seed: of the weights, the order of the data and dropout.
        output: folder of the run; a sweep gives each job one of its own below it.
        start: weights to begin with, whatever `delvm.load_tokenizer` or `delvm.load_student`
            reads, of the network that the config describes; None = fresh ones. A resumed run has
            its own.
        resume: None (start anew), auto (the run's newest checkpoint, if any) or a file.
        overwrite: whether a run that the folder holds already is replaced.
        overfit: train on the first so many batches only, again and again; 0 = on all. The first
            check of any change: overfit=1 ends near zero loss.
    """

    module: ModuleConfig = field(default_factory=StudentModule)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    data: SentencesConfig | ImagesConfig = field(default_factory=SentencesConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    seed: int = 0
    output: str = "outputs/train"
    start: str | None = None
    resume: str | None = None
    overwrite: bool = False
    overfit: int = 0
