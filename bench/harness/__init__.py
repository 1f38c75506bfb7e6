"""Time contenders side by side, and record it."""
