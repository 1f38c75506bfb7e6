"""Independent implementations and tolerances that tests compare with, and benchmarks race against."""
