"""Optional parts for CPUs: kernels of attention and of decoding, their build, and the malloc settings."""
