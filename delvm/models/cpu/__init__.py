"""Optional parts for CPUs: the attention kernel, its build, and the malloc settings."""
