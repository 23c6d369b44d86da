"""Readers of raw data sets in their true formats, one file each.

Each is a dataclass with the methods of `delvm.data.sources.base.Source`; its fields are the keys of
`conf/verbs/source/NAME.yaml`, from which Hydra builds it.
"""

from delvm.data.sources.annotated.co3d import Co3d
from delvm.data.sources.annotated.images import Annotated
from delvm.data.sources.annotated.video import AnnotatedVideo
from delvm.data.sources.base import RawSource, Source, check_source
from delvm.data.sources.coco_pose import CocoPose
from delvm.data.sources.derived import Derived
from delvm.data.sources.gopro import GoPro
from delvm.data.sources.hdvila import HdVila
from delvm.data.sources.images import Images
from delvm.data.sources.laion import Laion
from delvm.data.sources.nyu_depth import NyuDepth
from delvm.data.sources.paired_folders import Paired
from delvm.data.sources.pascal5i import Pascal5i
from delvm.data.sources.rain13k import Rain13K
from delvm.data.sources.reasoning import Reasoning
from delvm.data.sources.sa1b import SA1B
from delvm.data.sources.shapes.source import Shapes
from delvm.data.sources.stereo import Stereo
from delvm.data.sources.video import Video

# Option in conf/verbs/source -> class.
SOURCES: dict[str, type[RawSource] | type[Shapes] | type[Stereo] | type[Reasoning]] = {
    "annotated": Annotated,
    "annotated_video": AnnotatedVideo,
    "co3d": Co3d,
    "coco_pose": CocoPose,
    "derived": Derived,
    "gopro": GoPro,
    "hdvila": HdVila,
    "images": Images,
    "laion": Laion,
    "nyu_depth": NyuDepth,
    "paired": Paired,
    "pascal5i": Pascal5i,
    "rain13k": Rain13K,
    "reasoning": Reasoning,
    "sa1b": SA1B,
    "shapes": Shapes,
    "stereo": Stereo,
    "video": Video,
}

__all__ = [
    "SA1B",
    "SOURCES",
    "Annotated",
    "AnnotatedVideo",
    "Co3d",
    "CocoPose",
    "Derived",
    "GoPro",
    "HdVila",
    "Images",
    "Laion",
    "NyuDepth",
    "Paired",
    "Pascal5i",
    "Rain13K",
    "RawSource",
    "Reasoning",
    "Shapes",
    "Source",
    "Stereo",
    "Video",
    "check_source",
]
