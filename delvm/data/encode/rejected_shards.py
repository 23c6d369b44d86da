"""Image shards of a store that cannot be read: the other token shards are written all the same."""

import json

from delvm.data.encode.executors.base import Rank
from delvm.data.encode.shard_task import EncodeJob, ShardResult
from delvm.data.shards.fetch import MAX_SHARDS_IN_A_ROW
from delvm.errors import UserError
from delvm.progress import log
from delvm.storage import write_text


class RejectedShards:
    """Lists the image shards that could not be read, and the token shards that lack them."""

    def __init__(self, job: EncodeJob, rank: Rank) -> None:
        """List nothing yet; each rank has a list of its own."""
        suffix = f"_{rank.rank}" if rank.world_size > 1 else ""
        self.path = job.output_dir / f"rejected_shards{suffix}.jsonl"
        self.job = job
        self._lines: list[dict[str, object]] = []
        self._in_a_row = 0

    def update(self, result: ShardResult) -> bool:
        """Whether a token shard could be written; lists it if not.

        Raises:
            UserError: So many in a row could not be that the store must be lost.
        """
        if result.unread is None:
            self._in_a_row = 0
            return True
        error, missing = result.unread, self.job.title(result.shard)
        log(f"encode: {missing} is not written: {error} ({error.attempts} attempts)")
        self._lines.append(
            {
                "tokens": missing,
                "shard": error.path,
                "attempts": error.attempts,
                "reason": str(error),
            }
        )
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self._lines))
        self._in_a_row += 1
        if self._in_a_row == MAX_SHARDS_IN_A_ROW:
            self.raise_if_any()
        return False

    def raise_if_any(self) -> None:
        """Remove the list of an earlier run where there is nothing to list.

        Raises:
            UserError: Token shards are missing.
        """
        if not self._lines:
            self.path.unlink(missing_ok=True)
            return
        shards = {line["shard"] for line in self._lines}
        raise UserError(
            f"token shards that are not written: {len(self._lines):,}; image shards that cannot be "
            f"read: {len(shards):,}, the last one because {self._lines[-1]['reason']}: make those "
            f"in {self.path} readable and run the same command again"
        )
