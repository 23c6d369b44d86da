"""SA-1B: images with all their masks (Kirillov et al., "Segment Anything", ICCV 2023)."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from PIL import Image

from delvm import legacy
from delvm.data.image_io import open_stored
from delvm.data.sources._io.rle import Runs, decode_runs
from delvm.data.sources._io.tar import (
    TAR_ERRORS,
    find_tars,
    format_error,
    read_member,
    scan_members,
)
from delvm.data.sources.base import Box, RawSource, tar_chunks, to_reject, unique_keys
from delvm.data.types import Example, RejectedItem, SourceChunk
from delvm.errors import UserError
from delvm.tasks import sam_masks

NUM_CROPS = 6
SUFFIXES = (".jpg", ".json")
# Those of SA-1B are below one MB.
MAX_JSON_BYTES = 64 * 1024 * 1024
MAX_MASKS = len(sam_masks.PALETTE)


@dataclass
class SA1B(RawSource):
    """sa_000000.tar ... with sa_N.jpg and sa_N.json.

    A chunk is a tar, so each has its own shards. The split of an image depends on its tar and
    name, and all its crops are in the same split.

    Attributes:
        num_crops: squares cut from each image: 6 (the four corners and the two at the middle of
            the long side), or 0 for the image itself.
        crop_side: side of those squares in pixels, or the short side of a smaller image; identical
            squares are taken once.
        max_masks: the largest masks of an image are painted, up to this number; the rest is
            background.
    """

    name: ClassVar[str] = "sa1b"
    num_crops: int = NUM_CROPS
    crop_side: int = 800
    max_masks: int = MAX_MASKS

    def validate(self) -> list[str]:
        """Every error of the settings alone."""
        errors = super().validate()
        if self.num_crops not in (0, NUM_CROPS):
            errors.append(
                f"num_crops={self.num_crops} is neither {NUM_CROPS} (corners and middles) nor 0 "
                f"(the center): set source.num_crops={NUM_CROPS}"
            )
        if self.crop_side < 1:
            errors.append(f"crop_side={self.crop_side} is below 1: set source.crop_side=800")
        if not 1 <= self.max_masks <= MAX_MASKS:
            errors.append(
                f"max_masks={self.max_masks} is not in 1..{MAX_MASKS}, the number of distinct "
                f"colors: set source.max_masks={MAX_MASKS}"
            )
        return errors

    def chunks(self, split: str) -> dict[str, list[SourceChunk]]:
        """A chunk for each tar, named after it."""
        self.check(split)
        return {sam_masks.TASK.name: tar_chunks(self._tars, self.root())}

    def read(self, split: str, task: str, chunk: SourceChunk) -> Iterator[Example | RejectedItem]:
        """The crops of a tar's images that belong to the split, and the rejected members."""
        path = self._tars[chunk.name]
        tar_name = path.relative_to(self.root()).as_posix()
        try:
            tar = tarfile.open(path, "r:")  # noqa: SIM115 -- closed below
        except TAR_ERRORS as error:
            if self.split_of(tar_name) == split:
                yield RejectedItem(tar_name, format_error(error, path))
            return
        with tar:
            images, rejects = _index_tar(tar, tar_name)
            for key, stem in zip(unique_keys(list(images)), images, strict=True):
                if self.split_of(f"{tar_name}/{stem}") == split:
                    yield from self._examples(tar, tar_name, f"{chunk.name}-{key}", images[stem])
        yield from (each for each in rejects if self.split_of(each.key) == split)

    def _examples(
        self, tar: tarfile.TarFile, tar_name: str, key: str, files: dict[str, tarfile.TarInfo]
    ) -> Iterator[Example | RejectedItem]:
        names = {suffix: f"{tar_name}/{info.name}" for suffix, info in files.items()}
        for suffix in SUFFIXES:
            if suffix not in files:
                yield RejectedItem(next(iter(names.values())), f"missing {suffix[1:]}")
                return
        name = names[".jpg"]
        try:
            stored = open_stored(_read(tar, files[".jpg"]), name)
            name = names[".json"]
            annotations = _annotations(_read(tar, files[".json"]))
            # Masks refer to the stored pixels, unless their size is that of the turned image.
            image = stored.of_size(_mask_size(annotations[0])) or stored.pixels
            labels = self._label_map(annotations, image)
        except UserError as error:
            yield to_reject(name, error)
            return
        colors = sam_masks.random_palette(self.max_masks, self.rng(legacy.seed_word("colors"), key))
        for number, box in enumerate(self._boxes(*image.size)):
            # Nearest, since a mixture of two colors would be the color of a third mask.
            crop_labels = self.to_square(labels.crop(box), labels=True)
            pair = self.to_square(image.crop(box)), colors[crop_labels]
            crop_key = f"{key}-c{number}" if self.num_crops else key
            yield Example(crop_key, sam_masks.TASK.name, pair)

    def _label_map(self, annotations: list[Any], image: Image.Image) -> Image.Image:
        """The masks of an image, painted at its full size once for all crops."""
        width, height = image.size
        runs = [
            _runs_of(number, annotation, height, width)
            for number, annotation in enumerate(annotations)
        ]
        labels = sam_masks.label_map_from_runs(runs, height, width, self.max_masks)
        return Image.fromarray(labels)

    def _boxes(self, width: int, height: int) -> list[Box]:
        """The distinct squares to cut from an image, or the image itself."""
        if not self.num_crops:
            return [(0, 0, width, height)]
        side = min(self.crop_side, width, height)
        columns, rows = ((0, room - side) for room in (width, height))
        corners = [(x, y) for y in rows for x in columns]
        middle = (max(width, height) - side) // 2
        middles = [(middle, y) for y in rows] if width >= height else [(x, middle) for x in columns]
        boxes = [(x, y, x + side, y + side) for x, y in corners + middles]
        return list(dict.fromkeys(boxes))

    @cached_property
    def _tars(self) -> dict[str, Path]:
        """The tars below the root, by the names of their chunks."""
        return find_tars(self.root())


def _index_tar(
    tar: tarfile.TarFile, tar_name: str
) -> tuple[dict[str, dict[str, tarfile.TarInfo]], list[RejectedItem]]:
    """The files of each image by suffix, sorted by the image's name, and the rejected members."""
    images: dict[str, dict[str, tarfile.TarInfo]] = {}
    rejects = []
    try:
        for info, reason in scan_members(tar, SUFFIXES):
            path = PurePosixPath(info.name)
            files = images.setdefault(path.with_suffix("").as_posix(), {}) if not reason else {}
            if reason or path.suffix.lower() in files:
                rejects.append(RejectedItem(f"{tar_name}/{info.name}", reason or "duplicate name"))
            files.setdefault(path.suffix.lower(), info)
    except TAR_ERRORS as error:
        rejects.append(RejectedItem(tar_name, format_error(error)))
    return dict(sorted(images.items())), rejects


def _read(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    try:
        return read_member(tar, info)
    except TAR_ERRORS as error:
        raise UserError(format_error(error)) from None


def _annotations(data: bytes) -> list[Any]:
    """The annotations in the JSON of an image, which is not trusted.

    Raises:
        UserError: the JSON is invalid, or has no annotations.
    """
    if len(data) > MAX_JSON_BYTES:
        raise UserError(f"{len(data):,} bytes of JSON, above {MAX_JSON_BYTES:,}")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:  # invalid UTF-8 is a ValueError
        raise UserError(f"cannot be read as JSON: {error}") from None
    annotations = value.get("annotations") if isinstance(value, dict) else None
    if not isinstance(annotations, list):
        raise UserError("JSON without a list of annotations")
    if not annotations:
        raise UserError("no masks")
    return annotations


def _mask_size(annotation: Any) -> tuple[int, int]:
    """Width and height that a mask states; (0, 0) if it states none, which is refused later."""
    match annotation:
        case {"segmentation": {"size": [int(height), int(width)]}}:
            return width, height
    return 0, 0


def _runs_of(number: int, annotation: Any, height: int, width: int) -> Runs:
    """The runs of one mask.

    Raises:
        UserError: it has another format or another size.
    """
    try:
        mask = annotation["segmentation"]
        counts, size = mask["counts"], mask["size"]
    except (TypeError, KeyError):
        raise UserError(f"mask {number} without segmentation, counts and size") from None
    if not isinstance(counts, str):
        raise UserError(f"mask {number} with counts that are not a string")
    if size != [height, width]:
        raise UserError(f"mask {number} has size {str(size)[:40]}, the image {[height, width]}")
    try:
        return decode_runs(counts, height, width)
    except UserError as error:
        raise UserError(f"mask {number}: {error}") from None
