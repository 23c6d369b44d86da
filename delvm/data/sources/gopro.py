"""GoPro: images with motion blur and the sharp originals (Nah et al., CVPR 2017)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from delvm.data.sources.paired_base import Pair, PairSource, files_below, match_pairs
from delvm.data.types import RejectedItem
from delvm.errors import UserError


@dataclass
class GoPro(PairSource):
    """Raw: {train,test}/SCENE/{blur,sharp}/*.png; flat: {train,test}/{input,target}/*.png.

    The frames of a scene look alike, so in the raw layout "val" takes entire scenes. The flat
    layout does not record the scene of an image.
    """

    name: ClassVar[str] = "gopro"
    val_fraction: float = 0.1

    def task_name(self) -> str:
        """Always deblur."""
        return "deblur"

    def pairs(self) -> Iterator[tuple[str, Pair | RejectedItem]]:
        """Pairs of both splits, scene by scene.

        Raises:
            UserError: the layout is neither of the two.
        """
        folders = [(split, self.root() / split) for split in ("train", "test")]
        existing = [(split, folder) for split, folder in folders if folder.is_dir()]
        if not existing:
            raise UserError(
                f"source.path={self.path} has no directory train or test: set source.path to the "
                "directory that contains them"
            )
        for native_split, folder in existing:
            if (folder / "input").is_dir() or (folder / "target").is_dir():
                inputs, targets = (files_below(folder / side) for side in ("input", "target"))
                split_of = partial(self.split_of, native_split=native_split)
                yield from match_pairs(self, inputs, targets, split_of)
                continue
            scenes = [
                scene
                for scene in sorted(folder.iterdir())
                if (scene / "blur").is_dir() or (scene / "sharp").is_dir()
            ]
            if not scenes:
                raise UserError(
                    f"{folder} has neither input and target nor SCENE/blur and SCENE/sharp: "
                    "set source.path to the directory that contains train and test"
                )
            for scene in scenes:
                split = self.split_of(scene.name, native_split)
                sides = files_below(scene / "blur"), files_below(scene / "sharp")
                yield from match_pairs(self, *sides, partial(_constant, split), scene.name)


def _constant(split: str, name: str) -> str:
    """The split of the scene, for each of its images."""
    return split
