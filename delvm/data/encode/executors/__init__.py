"""How token shards are written: in this process, by processes, by Ray, or by SLURM jobs.

Each executor is a dataclass with the methods of `.base.Executor`; its fields are the keys of
`conf/verbs/executor/NAME.yaml`, from which Hydra builds it. All of them call
`delvm.data.encode.shard_task.encode_shard`.
"""

from delvm.data.encode.executors.base import Executor, check_executor
from delvm.data.encode.executors.local import Local
from delvm.data.encode.executors.processes import Processes
from delvm.data.encode.executors.ray import RayActors
from delvm.data.encode.executors.submitit import SubmititJobs

# Option in conf/verbs/executor -> class.
EXECUTORS: dict[str, type[Local | Processes | RayActors | SubmititJobs]] = {
    "local": Local,
    "processes": Processes,
    "ray": RayActors,
    "submitit": SubmititJobs,
}

__all__ = [
    "EXECUTORS",
    "Executor",
    "Local",
    "Processes",
    "RayActors",
    "SubmititJobs",
    "check_executor",
]
