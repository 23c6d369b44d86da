"""Benchmarks: one file a subject, each with `rows()`; `python -m experiments.bench` runs them."""
