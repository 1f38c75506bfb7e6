"""Find the constants of the CUDA backend: a model of the L2 cache, a sweep and hardware counters."""
