"""Time pip install and a first run."""
