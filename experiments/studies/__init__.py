"""Experiments of several training runs: what they share.

A study is a module ``experiments/NAME/study.py`` with

- ``QUESTION``, one line;
- ``stages()``, the `Stage`s that it needs: every one is a `delvm` command that can be typed;
- ``measure()``, the rows of its results.csv, read from what the stages wrote;
- ``table(rows)``, their Markdown table, as it stands in its README;
- ``plot(rows, axes)``, their figure, plot.png.

``python -m experiments.studies`` lists, runs and tabulates them.
"""
