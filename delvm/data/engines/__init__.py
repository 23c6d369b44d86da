"""Who writes the token shards: this process, processes, actors of Ray, jobs of SLURM.

An engine is the dataclass of its config (`conf/engine/NAME.yaml`) with the methods of
`delvm.data.engines.base.Engine`. All of them call `delvm.data.pieces.encode_piece`.
"""

from delvm.data.engines.base import Engine
from delvm.data.engines.local import Local
from delvm.data.engines.process import Processes
from delvm.data.engines.ray_actors import RayActors
from delvm.data.engines.submitit_jobs import SubmititJobs

# Name in conf/engine -> engine.
ENGINES: dict[str, type[Engine]] = {
    "local": Local,
    "process": Processes,
    "ray": RayActors,
    "submitit": SubmititJobs,
}
