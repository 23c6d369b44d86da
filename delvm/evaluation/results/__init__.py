"""What an evaluation writes besides its report: metrics, rows, provenance, and to loggers."""
