"""Readers that sources share: tar archives, videos, RLE masks, COCO JSON."""
