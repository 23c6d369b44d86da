"""At least a sentence of examples for validation and test, where a small data set allows it.

By fractions alone, 100 pairs leave no validation pair in a third of all seeds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from delvm.data.types import RejectedItem
from delvm.progress import log

T = TypeVar("T")
MAX_ROUNDS = 200
PAIRS_NEEDED, IMAGES_NEEDED = 4, 8  # of a sentence, by default


@dataclass
class SplitMoves:
    """The keys of items that leave "train".

    Attributes:
        moved: key -> the split it goes to.
        movable: key -> the splits it may go to, of the keys in "train"; filled while a source is
            listed by `with_minimum_splits`, else None.
    """

    moved: dict[str, str] = field(default_factory=dict)
    movable: dict[str, tuple[str, ...]] | None = None


def with_minimum_splits(
    moves: SplitMoves,
    list_items: Callable[[], dict[str, list[T]]],
    needed: int,
    fractions: Mapping[str, float],
    order: Callable[[str], Any],
) -> dict[str, list[T]]:
    """The items of each split; keys are moved out of "train" while "val" or "test" has too few.

    Nothing is moved to a split that has enough, that has a fraction of 0, or that would
    leave "train" with too few.

    Args:
        moves: Of the source, whose `split_of` obeys and fills it.
        list_items: Lists the data set, by `split_of`.
        needed: Items that a split needs.
        fractions: Of "val" and "test".
        order: Of the keys, those to move first; must not depend on anything but the data set.
    """

    def list_again() -> dict[str, list[T]]:
        moves.movable = {}
        return list_items()

    items = list_again()
    total = sum(_count(each) for each in items.values())
    for split in ("val", "test"):
        before = dict(moves.moved)
        for _ in range(MAX_ROUNDS if fractions[split] else 0):
            missing = needed - _count(items.get(split, []))
            movable = moves.movable or {}
            candidates = sorted((key for key, to in movable.items() if split in to), key=order)
            if missing <= 0 or not candidates:
                break
            # A key may have many items. Where several keys make one item, none is to be left over.
            keys = max(1, missing * len(movable) // max(1, total)) if len(movable) < total else 1
            moves.moved |= dict.fromkeys(candidates[:keys], split)
            items = list_again()
        if moves.moved == before:
            continue
        counts = {name: _count(items.get(name, [])) for name in ("train", split)}
        if min(counts.values()) < needed:  # too few for both
            moves.moved = before
            items = list_again()
        else:
            log(
                f"prepare: {counts[split]:,} of {total:,} items are in {split}, more than "
                f"{split}_fraction={fractions[split]}, since a sentence takes {needed}"
            )
    moves.movable = None
    return items


def _count(items: Sequence[object]) -> int:
    return sum(not isinstance(each, RejectedItem) for each in items)
