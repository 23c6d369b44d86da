"""The command line: one file a verb, each a Hydra app, and what they share."""
