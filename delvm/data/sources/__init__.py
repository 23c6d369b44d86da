"""Readers of raw data sets in their true formats, one file each.

A reader is the dataclass of its config (`conf/source/NAME.yaml`) with the methods of
`delvm.data.types.Source`.
"""

from delvm.data.sources.base import SourceConfig
from delvm.data.sources.coco_pose import CocoPose
from delvm.data.sources.derived import Derived
from delvm.data.sources.gopro import GoPro
from delvm.data.sources.images import Images
from delvm.data.sources.laion import Laion
from delvm.data.sources.paired_folders import Paired
from delvm.data.sources.rain13k import Rain13K
from delvm.data.sources.sa1b import SA1B
from delvm.data.sources.video import HdVila, Video

# Name in conf/source -> reader.
SOURCES: dict[str, type[SourceConfig]] = {
    "coco_pose": CocoPose,
    "derived": Derived,
    "gopro": GoPro,
    "hdvila": HdVila,
    "images": Images,
    "laion": Laion,
    "paired": Paired,
    "rain13k": Rain13K,
    "sa1b": SA1B,
    "video": Video,
}
