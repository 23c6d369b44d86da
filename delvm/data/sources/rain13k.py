"""Rain13K: pictures in rain and clean ones, as files or in LMDB stores.

The collection of Jiang et al. (MSPFN, CVPR 2020), in the folders that Zamir et al. (MPRNet,
CVPR 2021) gave it; the stores are those of BasicSR.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from delvm.data.sources.paired_base import At, Pair, PairSource, files_in, match
from delvm.data.types import RejectedItem
from delvm.errors import UserError

_SIDES = ("input", "target")
_STORES = ("input.lmdb", "target.lmdb")


@dataclass
class Rain13K(PairSource):
    """{train,test}, train/Rain13K and test/SET with {input,target} or {input,target}.lmdb."""

    name: ClassVar[str] = "rain13k"

    def made_task(self) -> str:
        """Always derain."""
        return "derain"

    def pairs(self) -> Iterator[tuple[str, Pair | RejectedItem]]:
        """Pairs of the training folder, then of every set of the test folder.

        Raises:
            UserError: another layout, or a store without its list of pictures.
        """
        places = [
            (natural, folder)
            for natural in ("train", "test")
            for folder in self._folders(self.root() / natural)
        ]
        if not places:
            raise UserError(
                f"source.path={self.path} holds no train/Rain13K/input or test/SET/input, nor an "
                "input.lmdb there: set source.path to the folder that holds train and test"
            )
        for natural, folder in places:
            inputs, targets = (self._side(folder, side) for side in _SIDES)
            within = "" if folder.name == natural else folder.name
            split = partial(self.split_of, natural=natural)
            yield from match(self, inputs, targets, split, within)

    def load(self, at: At) -> Path | bytes:
        """The file of a picture, or its bytes out of a store."""
        return read_store(at.place, at.name) if _is_store(at.place) else super().load(at)

    @staticmethod
    def _folders(folder: Path) -> list[Path]:
        """A folder and those in it that hold a side."""
        if not folder.is_dir():
            return []
        inside = [each for each in sorted(folder.iterdir()) if each.is_dir()]
        return [
            each
            for each in (folder, *inside)
            if any((each / side).is_dir() for side in (*_SIDES, *_STORES))
        ]

    def _side(self, folder: Path, side: str) -> Iterator[tuple[str, At]]:
        if (folder / side).is_dir():
            return files_in(folder / side)
        store = folder / f"{side}.lmdb"
        if not store.is_dir():
            raise UserError(
                f"{folder} holds one side, and neither {side} nor {side}.lmdb: complete it, or set "
                "source.path to another folder"
            )
        if find_spec("lmdb") is None:
            raise UserError(f"{store} needs the package lmdb: run `pip install delvm[data]`")
        return ((name, At(store, name)) for name in store_keys(store))


def _is_store(place: Path) -> bool:
    return place.suffix == ".lmdb"


def store_keys(store: Path) -> list[str]:
    """Keys of the pictures in an LMDB store, from its meta_info.txt.

    A line is `000001.png (512,384,3) 1`: name, height, width and channels, PNG compression.
    The key is the name without its extension.

    Raises:
        UserError: The list is missing or a line is of another form.
    """
    path = store / "meta_info.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"list of the pictures in {store} cannot be read: {error}") from None
    keys = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        parts = re.fullmatch(r"(.+?)(\.\w+)? \(\d+, ?\d+, ?\d+\)( \d+)?\s*", line)
        if not parts:
            raise UserError(
                f"{path} line {number} is {line[:80]!r}, not like '000001.png (512,384,3) 1'"
            )
        keys.append(parts[1])
    return keys


def read_store(store: Path, key: str) -> bytes:
    """The encoded picture under a key of an LMDB store, which is opened read-only.

    Raises:
        UserError: The store cannot be opened, is cut short, or has nothing under the key.
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
            wanted = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
            found = (store / "data.mdb").stat().st_size
            if found < wanted:
                # Reading on would be beyond the file's end, which kills the process.
                raise UserError(f"its store is cut short: {found:,} of {wanted:,} bytes")
            value = view.get(key.encode())
            if value is None:
                raise UserError("listed in meta_info.txt, and not in the store")
            return bytes(value)
    except (lmdb.Error, OSError) as error:
        reason = str(error).removeprefix(f"{store}: ")
        raise UserError(f"its store cannot be read: {reason}") from None
