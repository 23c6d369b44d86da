"""Who writes the token shards: this process, processes, actors of Ray, jobs of SLURM.

An engine is the dataclass of its config (`conf/engine/NAME.yaml`) with the methods of
`.base.Engine`. All of them call `delvm.data.encode.shard_task.encode_piece`.
"""

from delvm.data.encode.executors.base import Engine
from delvm.data.encode.executors.local import Local
from delvm.data.encode.executors.processes import Processes
from delvm.data.encode.executors.ray import RayActors
from delvm.data.encode.executors.submitit import SubmititJobs

# Name in conf/engine -> engine.
ENGINES: dict[str, type[Engine]] = {
    "local": Local,
    "process": Processes,
    "ray": RayActors,
    "submitit": SubmititJobs,
}
