"""Pure torch models: they know neither Lightning nor Hydra."""
