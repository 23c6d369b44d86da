"""Shards: manifests, writing, reading front to back, and random access."""
