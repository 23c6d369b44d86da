"""GoPro: images with motion blur and the sharp originals (Nah et al., CVPR 2017)."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from delvm.data.sources.paired_base import Pair, PairSource, files_below, match_pairs
from delvm.data.types import RejectedItem
from delvm.errors import UserError
from delvm.progress import log


@dataclass
class GoPro(PairSource):
    """Raw: {train,test}/SCENE/{blur,sharp}/*.png; flat: {train,test}/{input,target}/*.png.

    Flat directories may also be {train,test}/GoPro, or GoPro_{train,test} as in DeLVM's README, and
    one of them alone may be the root. The frames of a scene look alike, so in the raw layout "val"
    takes entire scenes. The flat layout does not record the scene of an image.
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
        folders = list(self._folders())
        if not folders:
            raise UserError(
                f"source.path={self.path} has no directory train or test, and no GoPro_train: set "
                "source.path to the directory that contains them"
            )
        for native_split, folder in folders:
            if _is_flat(folder):
                inputs, targets = (files_below(folder / side) for side in ("input", "target"))
                split_of = partial(self.split_of, native_split=native_split)
                yield from match_pairs(self, inputs, targets, split_of)
                continue
            found = [each for each in sorted(folder.iterdir()) if each.is_dir()]
            scenes = [
                each for each in found if (each / "blur").is_dir() or (each / "sharp").is_dir()
            ]
            if not scenes:
                raise UserError(
                    f"{folder} has neither input and target nor SCENE/blur and SCENE/sharp: "
                    "set source.path to the directory that contains train and test"
                )
            if others := [each.name for each in found if each not in scenes]:
                log(f"prepare: left out of {folder}, without blur and sharp: {', '.join(others)}")
            for scene in scenes:
                split = self.split_of(scene.name, native_split)
                sides = files_below(scene / "blur"), files_below(scene / "sharp")
                yield from match_pairs(self, *sides, partial(_constant, split), scene.name)

    def _folders(self) -> Iterator[tuple[str | None, Path]]:
        """The directory of each split; the split is None where no other holds test images."""
        root = self.root()
        if _is_flat(root):
            yield ("test" if root.name.endswith("test") else None), root
            return
        for split in ("train", "test"):
            named = root / f"GoPro_{split}"
            if _is_flat(root / split / "GoPro"):
                yield split, root / split / "GoPro"
            elif (root / split).is_dir():
                yield split, root / split
            elif _is_flat(named):
                alone = split == "train" and not _is_flat(root / "GoPro_test")
                yield None if alone else split, named


def _is_flat(folder: Path) -> bool:
    return (folder / "input").is_dir() or (folder / "target").is_dir()


def _constant(split: str, name: str) -> str:
    """The split of the scene, for each of its images."""
    return split
