"""The command line: one file per verb, each a Hydra app, and what they share."""

# `delvm.commands.VERB` holds its ``main``; its YAML in conf/ the config, help and examples.
VERBS = (
    "prepare",
    "encode",
    "train",
    "runs",
    "generate",
    "serve",
    "evaluate",
    "inspect",
    "convert",
    "export",
)
