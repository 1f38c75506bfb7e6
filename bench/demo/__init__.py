"""Train a small network on badly weighted loss terms."""
