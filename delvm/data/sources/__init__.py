"""Readers of raw data sets in their true formats, one file each.

A reader is the dataclass of its config (`conf/source/NAME.yaml`) with the methods of
`delvm.data.examples.Source`.
"""

from delvm.data.sources.base import SourceConfig

# Name in conf/source -> reader.
SOURCES: dict[str, type[SourceConfig]] = {}
