"""Training in several processes: DTensors and collectives. Nothing else in the package calls torch.distributed."""
