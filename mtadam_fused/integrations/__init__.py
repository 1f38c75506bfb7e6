"""Glue for frameworks that own the training loop. Each module needs its framework, so import it by its own name."""
