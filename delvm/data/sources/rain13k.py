"""Rain13K: images with rain and clean ones, as files or in LMDB stores.

The collection of Jiang et al. (MSPFN, CVPR 2020), in the directories of Zamir et al. (MPRNet, CVPR
2021); the stores are those of BasicSR.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from delvm.data.sources.paired_base import FileRef, Pair, PairSource, files_below, match_pairs
from delvm.data.types import RejectedItem
from delvm.errors import UserError, did_you_mean

_SIDES = ("input", "target")
_STORES = ("input.lmdb", "target.lmdb")


@dataclass
class Rain13K(PairSource):
    """{train,test}, train/Rain13K and test/SET with {input,target} or {input,target}.lmdb.

    The directory of a training set alone may also be the root, or Rain13K* in it, such as
    Rain13K_lmdb as in DeLVM's README; val and test are then fractions of it.

    Attributes:
        test_sets: of the directories in test, such as Rain100L or Test2800, those to take, each of
            which the literature reports by itself; without any, all.
    """

    name: ClassVar[str] = "rain13k"
    test_sets: list[str] = field(default_factory=list)

    def settings(self, split: str, task: str) -> dict[str, Any]:
        """Every setting but size and seed; `test_sets` only where it is set."""
        settings = super().settings(split, task)
        if not self.test_sets:
            del settings["test_sets"]
        return settings

    def task_name(self) -> str:
        """Always derain."""
        return "derain"

    def pairs(self) -> Iterator[tuple[str, Pair | RejectedItem]]:
        """Pairs of the training directory, then of every set of the test directory.

        Raises:
            UserError: the layout is another one, or a store has no list of its images.
        """
        root = self.root()
        folders: list[tuple[str | None, Path]] = [
            (native_split, folder)
            for native_split in ("train", "test")
            for folder in self._folders(root / native_split)
            if native_split == "train" or not self.test_sets or folder.name in self.test_sets
        ]
        found = {folder.name for native_split, folder in folders if native_split == "test"}
        if missing := [name for name in self.test_sets if name not in found]:
            existing = [folder.name for folder in self._folders(root / "test")]
            raise UserError(
                f"source.test_sets has '{missing[0]}', which is not in {root / 'test'}: "
                f"{did_you_mean(missing[0], existing)}"
            )
        if not folders:
            alone = [root] if _has_side(root) else filter(_has_side, sorted(root.glob("Rain13K*")))
            folders = [(None, folder) for folder in alone]
        if not folders:
            raise UserError(
                f"source.path={self.path} has neither train/Rain13K/input nor test/SET/input, nor "
                "an input.lmdb there: set source.path to the directory that contains train and test"
            )
        for native_split, folder in folders:
            inputs, targets = (self._side(folder, side) for side in _SIDES)
            prefix = "" if folder.name == native_split or folder == root else folder.name
            split_of = partial(self.split_of, native_split=native_split)
            yield from match_pairs(self, inputs, targets, split_of, prefix)

    def load(self, file: FileRef) -> Path | bytes:
        """The path of an image, or its bytes from a store."""
        if file.parent.suffix == ".lmdb":
            return read_store(file.parent, file.name)
        return super().load(file)

    def location(self, file: FileRef) -> Path:
        """The file on disk that an image is in."""
        if file.parent.suffix == ".lmdb":
            return file.parent / "data.mdb"
        return super().location(file)

    @staticmethod
    def _folders(folder: Path) -> list[Path]:
        """Of a directory and its subdirectories, those that contain a side."""
        if not folder.is_dir():
            return []
        inside = [each for each in sorted(folder.iterdir()) if each.is_dir()]
        return [each for each in (folder, *inside) if _has_side(each)]

    def _side(self, folder: Path, side: str) -> Iterator[tuple[str, FileRef]]:
        """(id, file) of every image of one side."""
        if (folder / side).is_dir():
            return files_below(folder / side)
        store = folder / f"{side}.lmdb"
        if not store.is_dir():
            raise UserError(
                f"{folder} has only one side, and neither {side} nor {side}.lmdb: complete it, or "
                "set source.path to another directory"
            )
        if find_spec("lmdb") is None:
            raise UserError(f"{store} needs the package lmdb: run `pip install delvm[data]`")
        return ((name, FileRef(store, name)) for name in store_keys(store))


def _has_side(folder: Path) -> bool:
    return any((folder / side).is_dir() for side in (*_SIDES, *_STORES))


def store_keys(store: Path) -> list[str]:
    """Keys of the images in an LMDB store, from its meta_info.txt.

    A line is `000001.png (512,384,3) 1`: name, height, width and channels, PNG compression.
    The key is the name without its extension.

    Raises:
        UserError: The list is missing, or a line has another format.
    """
    path = store / "meta_info.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the list of images in {store} cannot be read: {error}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(.+?)(\.\w+)? \(\d+, ?\d+, ?\d+\)( \d+)?\s*", line)
        if not match:
            raise UserError(
                f"{path} line {number} is {line[:80]!r}, not like '000001.png (512,384,3) 1'"
            )
        keys.append(match[1])
    return keys


def read_store(store: Path, key: str) -> bytes:
    """The encoded image under a key of an LMDB store, which is opened read-only.

    Raises:
        UserError: The store cannot be opened, is truncated, or does not have the key.
    """
    try:
        import lmdb
    except ImportError:
        raise UserError(f"{store} needs the package lmdb: pip install 'delvm[data]'") from None
    try:
        with (
            lmdb.open(str(store), readonly=True, lock=False, readahead=False, create=False) as env,
            env.begin() as view,
        ):
            expected = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            actual = (store / "data.mdb").stat().st_size
            if actual < expected:
                # Reading beyond the end of the file would kill the process.
                raise UserError(f"its store is truncated: {actual:,} of {expected:,} bytes")
            value = view.get(key.encode())
            if value is None:
                raise UserError("listed in meta_info.txt, but not in the store")
            return bytes(value)
    except (lmdb.Error, OSError) as error:
        reason = str(error).removeprefix(f"{store}: ")
        raise UserError(f"its store cannot be read: {reason}") from None
