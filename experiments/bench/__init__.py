"""Benchmarks: one module per subject, each with `rows()`; `python -m experiments.bench` runs them."""
