"""GoPro: pictures with camera shake and their sharp ones (Nah et al., CVPR 2017)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from delvm.data.sources.paired_base import Pair, PairSource, files_in, match
from delvm.data.types import RejectedItem
from delvm.errors import UserError


@dataclass
class GoPro(PairSource):
    """Raw: {train,test}/SCENE/{blur,sharp}/*.png; flat: {train,test}/{input,target}/*.png.

    The frames of a scene show the same place, so in the raw layout "val" takes whole scenes; the
    flat one does not say which scene a picture is of.
    """

    name: ClassVar[str] = "gopro"
    val: float = 0.1

    def made_task(self) -> str:
        """Always deblur."""
        return "deblur"

    def pairs(self) -> Iterator[tuple[str, Pair | RejectedItem]]:
        """Pairs of both splits, scene by scene.

        Raises:
            UserError: the layout is neither of the two.
        """
        folders = [(split, self.root() / split) for split in ("train", "test")]
        there = [(split, folder) for split, folder in folders if folder.is_dir()]
        if not there:
            raise UserError(
                f"source.path={self.path} has no folder train or test: set source.path to the "
                "folder that holds them"
            )
        for natural, folder in there:
            if (folder / "input").is_dir() or (folder / "target").is_dir():
                inputs, targets = (files_in(folder / side) for side in ("input", "target"))
                yield from match(self, inputs, targets, partial(self.split_of, natural=natural))
                continue
            scenes = [
                scene
                for scene in sorted(folder.iterdir())
                if (scene / "blur").is_dir() or (scene / "sharp").is_dir()
            ]
            if not scenes:
                raise UserError(
                    f"{folder} holds neither input and target nor SCENE/blur and SCENE/sharp: "
                    "set source.path to the folder that holds train and test"
                )
            for scene in scenes:
                split = self.split_of(scene.name, natural)
                sides = files_in(scene / "blur"), files_in(scene / "sharp")
                yield from match(self, *sides, partial(_given, split), scene.name)


def _given(split: str, name: str) -> str:
    """The split of its scene, whichever the picture."""
    return split
