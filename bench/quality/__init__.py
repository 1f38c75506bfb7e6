"""Compare optimizers by the quality that they train small problems to."""
