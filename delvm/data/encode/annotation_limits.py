"""What augmentation must not do to annotations, whatever their task is called."""

from dataclasses import replace

from delvm.data.augment import BalanceConfig, Jitter
from delvm.data.shards.manifest import Manifest


def allowed_for_annotations(balance: BalanceConfig, manifest: Manifest) -> BalanceConfig:
    """The settings without what would change what annotations mean.

    Colors of annotations have a meaning, so they get no color jitter; nor does one frame of many.
    The colors of normals are directions, and would have to change with a mirrored, turned or
    stretched image. With `task_limits=false` nothing is changed.

    Args:
        balance: as the user has set it.
        manifest: of images or tokens; sources with annotations record their kinds.
    """
    kinds = manifest.settings.get("kinds")
    if not balance.task_limits or not isinstance(kinds, dict) or not kinds:
        return balance
    if balance.jitter is not Jitter.none:
        first_alone = manifest.source == "annotated"  # the others are annotations
        balance = replace(balance, jitter=Jitter.input if first_alone else Jitter.none)
    if "normals" in kinds.values():
        balance = replace(balance, hflip=False, vflip=False, max_degrees=0.0, crop_ratio=[1.0, 1.0])
    return balance
