"""Optional parts for CPUs: kernels, their build, and the malloc settings."""
