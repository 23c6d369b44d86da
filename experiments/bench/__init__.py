"""Benchmarks: one module each, with `rows()`; `python -m experiments.bench` runs them."""
