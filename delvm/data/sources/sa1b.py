"""SA-1B: pictures with all their masks (Kirillov et al., "Segment Anything", ICCV 2023)."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from delvm.data.image_io import open_image, resize_center_crop
from delvm.data.sources._io.rle import read_runs
from delvm.data.sources._io.tar import DAMAGE, content, damaged, scan, tars_in
from delvm.data.sources.base import Box, RawSource, check_split, distinct, middle_square, rejected
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError
from delvm.tasks import sam_masks as masks

CROPS = 6
SUFFIXES = (".jpg", ".json")
# Those of SA-1B are below one MB.
MAX_JSON_BYTES = 64 * 1024 * 1024


@dataclass
class SA1B(RawSource):
    """sa_000000.tar ... with sa_N.jpg and sa_N.json.

    A part is a tar, so each has its own shards. A picture's split is drawn by its tar and name,
    and all its crops are in that one.

    Attributes:
        crops: squares cut from each picture: 6, the four corners and the two in the middle of the
            long side, or 0 for the whole picture, its middle.
        crop_side: of those squares in pixels, or the picture's short side where that is less;
            squares that fall together are taken once.
        masks: largest ones of a picture to be painted; the rest is background.
    """

    name: ClassVar[str] = "sa1b"
    crops: int = CROPS
    crop_side: int = 800
    masks: int = len(masks.PALETTE)

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """A part for each tar, called as it is.

        Raises:
            UserError: no tars, or settings that no picture can have.
        """
        check_split(split)
        if self.crops not in (0, CROPS):
            raise UserError(
                f"source.crops={self.crops} is neither {CROPS} (corners and middles) nor 0 (the "
                f"whole picture): set source.crops={CROPS}"
            )
        if self.crop_side < 1:
            raise UserError(
                f"source.crop_side={self.crop_side} is below 1: set source.crop_side=800"
            )
        most = len(masks.PALETTE)
        if not 1 <= self.masks <= most:
            raise UserError(
                f"source.masks={self.masks} is not in 1..{most}, the colours that can be told "
                f"apart: set source.masks={most}"
            )
        return {masks.TASK.name: [SourceChunk(name) for name in self._tars]}

    def read(self, split: str, task: str, part: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The crops of the pictures of a tar that belong to the split, and what is left out."""
        path = self._tars[part.name]
        place = path.relative_to(self.root()).as_posix()
        try:
            tar = tarfile.open(path, "r:")  # noqa: SIM115 -- closed below
        except DAMAGE as error:
            if self.split_of(place) == split:
                yield RejectedItem(place, damaged(error))
            return
        with tar:
            found, rejects = _index(tar, place)
            for key, stem in zip(distinct(list(found)), found, strict=True):
                if self.split_of(f"{place}/{stem}") == split:
                    made = self._examples(tar, place, f"{part.name}-{key}", found[stem])
                    yield from made
        yield from (each for each in rejects if self.split_of(each.key) == split)

    def _examples(
        self, tar: tarfile.TarFile, place: str, key: str, files: dict[str, tarfile.TarInfo]
    ) -> Iterator[Example | RejectedItem]:
        names = {suffix: f"{place}/{info.name}" for suffix, info in files.items()}
        for suffix in SUFFIXES:
            if suffix not in files:
                yield RejectedItem(next(iter(names.values())), f"missing {suffix[1:]}")
                return
        name = names[".jpg"]
        try:
            image = open_image(_held(tar, files[".jpg"]), name)
            name = names[".json"]
            labels = self._labels(_held(tar, files[".json"]), image)
        except UserError as error:
            yield rejected(name, error)
            return
        colours = masks.colours(self.masks, self.rng("colours", key))
        for number, box in enumerate(self._boxes(*image.size)):
            picture = resize_center_crop(image.crop(box), self.size)
            # The nearest label, since a mixture of two colours would be a third mask's.
            near = labels.crop(box).resize(picture.size, Image.Resampling.NEAREST)
            pictures = np.asarray(picture), colours[np.asarray(near)]
            yield Example(f"{key}-c{number}" if self.crops else key, masks.TASK.name, pictures)

    def _labels(self, data: bytes, image: Image.Image) -> Image.Image:
        """The masks of a picture, painted at its full size once for all crops."""
        width, height = image.size
        runs = [
            _runs(number, annotation, height, width)
            for number, annotation in enumerate(_annotations(data))
        ]
        return Image.fromarray(masks.paint(runs, height, width, self.masks))

    def _boxes(self, width: int, height: int) -> list[Box]:
        """The squares to cut from a picture, each once."""
        if not self.crops:
            return [middle_square(width, height)]
        side = min(self.crop_side, width, height)
        columns, rows = ((0, room - side) for room in (width, height))
        corners = [(x, y) for y in rows for x in columns]
        middle = (max(width, height) - side) // 2
        middles = [(middle, y) for y in rows] if width >= height else [(x, middle) for x in columns]
        boxes = [(x, y, x + side, y + side) for x, y in corners + middles]
        return list(dict.fromkeys(boxes))

    @cached_property
    def _tars(self) -> dict[str, Path]:
        """The tars below the root, by the names of their parts."""
        return tars_in(self.root())


def _index(
    tar: tarfile.TarFile, place: str
) -> tuple[dict[str, dict[str, tarfile.TarInfo]], list[RejectedItem]]:
    """The files of each picture by suffix, pictures in the order of their names, and the rest."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    rejects = []
    try:
        for info, fault in scan(tar, SUFFIXES):
            at = PurePosixPath(info.name)
            files = found.setdefault(at.with_suffix("").as_posix(), {}) if not fault else {}
            if fault or at.suffix.lower() in files:
                rejects.append(
                    RejectedItem(f"{place}/{info.name}", fault or "its name comes twice")
                )
            files.setdefault(at.suffix.lower(), info)
    except DAMAGE as error:
        rejects.append(RejectedItem(place, damaged(error)))
    return dict(sorted(found.items())), rejects


def _held(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    try:
        return content(tar, info)
    except DAMAGE as error:
        raise UserError(damaged(error)) from None


def _annotations(data: bytes) -> list[Any]:
    """The annotations in the JSON of a picture, which is not trusted.

    Raises:
        UserError: it is no such JSON, or there are none.
    """
    if len(data) > MAX_JSON_BYTES:
        raise UserError(f"{len(data):,} bytes of JSON, above {MAX_JSON_BYTES:,}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # bytes that are no UTF-8 are a ValueError
        raise UserError(f"cannot be read as JSON: {error}") from None
    found = value.get("annotations") if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise UserError("JSON without a list of annotations")
    if not found:
        raise UserError("no masks")
    return found


def _runs(number: int, annotation: Any, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Starts and stops of the runs of one mask.

    Raises:
        UserError: it is none, or one of another size.
    """
    try:
        mask = annotation["segmentation"]
        counts, size = mask["counts"], mask["size"]
    except (TypeError, KeyError):
        raise UserError(f"mask {number} without segmentation, counts and size") from None
    if not isinstance(counts, str):
        raise UserError(f"mask {number} with counts that are no text")
    if size != [height, width]:
        raise UserError(
            f"mask {number} of size {str(size)[:40]}, the picture has {[height, width]}"
        )
    try:
        return read_runs(counts, height, width)
    except UserError as error:
        raise UserError(f"mask {number}: {error}") from None
