"""Shared by tests and benchmarks: independent implementations, tolerances, and a GPU that is not there."""
