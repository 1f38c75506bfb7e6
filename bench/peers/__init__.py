"""The optimizers that are compared, each ready to make a step."""
