"""File formats of other projects, one module each."""
