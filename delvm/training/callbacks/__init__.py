"""Lightning callbacks of a training run; each also works with foreign modules and data."""

from delvm.training.callbacks.alarm import Alarm
from delvm.training.callbacks.checkpoint import AtomicCheckpoint
from delvm.training.callbacks.data_position import TrackDataPosition
from delvm.training.callbacks.graceful_shutdown import GracefulShutdown
from delvm.training.callbacks.learning_rate import LearningRate
from delvm.training.callbacks.model_config import SaveModelConfig
from delvm.training.callbacks.nonfinite_grad import SkipNonFiniteGrad
from delvm.training.callbacks.profiler import TorchProfiler
from delvm.training.callbacks.progress import ProgressLine
from delvm.training.callbacks.reconstructions import LogReconstructions
from delvm.training.callbacks.rng_state import RNGState
from delvm.training.callbacks.step_timer import StepTimer
from delvm.training.callbacks.stop_at_step import StopAtStep
from delvm.training.callbacks.task_metrics import TaskMetrics
from delvm.training.callbacks.throughput import ThroughputMonitor

__all__ = [
    "Alarm",
    "AtomicCheckpoint",
    "GracefulShutdown",
    "LearningRate",
    "LogReconstructions",
    "ProgressLine",
    "RNGState",
    "SaveModelConfig",
    "SkipNonFiniteGrad",
    "StepTimer",
    "StopAtStep",
    "TaskMetrics",
    "ThroughputMonitor",
    "TorchProfiler",
    "TrackDataPosition",
]
