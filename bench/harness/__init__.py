"""Timing contenders side by side, and the records of it."""
