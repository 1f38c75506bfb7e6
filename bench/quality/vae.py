"""A variational autoencoder of digits, whose sum of two terms has a meaning: the bound on the likelihood."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from bench.demo.data import endless_batches, load_images, split
from bench.quality.problem import EQUAL, Losses, Problem, Training, Weighting, factors

WIDTH, LATENT = 128, 8
SAMPLES = 16  # of the latent variables, where the bound is estimated
RECONSTRUCTION, KL = "reconstruction", "KL"


class VAE(nn.Module):
    """One hidden layer each way; pixels are Bernoulli variables."""

    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(pixels, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, WIDTH), nn.ReLU(), nn.Linear(WIDTH, pixels))

    def forward(self, images: Tensor, noise: Tensor) -> Losses:
        """Return reconstruction error and Kullback-Leibler divergence in nats per image.

        Args:
            images: [N, pixels].
            noise: [..., N, LATENT], normal.
        """
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        logits = self.decoder(mean + (log_variance / 2).exp() * noise)
        error = functional.binary_cross_entropy_with_logits(logits, images.expand_as(logits), reduction="none")
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        return {RECONSTRUCTION: error.sum(dim=-1).mean(), KL: divergence.sum(dim=1).mean()}


def start(seed: int) -> Training:
    """Make the network, its two losses, and the negative bound."""
    images = load_images()
    pixels = images.pixels.flatten(1)
    training, validation, test = split(images.labels, seed)
    torch.manual_seed(seed)
    network = VAE(pixels.shape[1])
    stream, generator = (
        endless_batches(training, torch.Generator().manual_seed(seed)),
        torch.Generator().manual_seed(seed),
    )

    def losses() -> Losses:
        batch = pixels[next(stream)]
        return network(batch, torch.randn(len(batch), LATENT, generator=generator))

    @torch.no_grad()
    def bound(positions: Tensor) -> float:
        noise = torch.randn(SAMPLES, len(positions), LATENT, generator=torch.Generator().manual_seed(0))
        return sum(loss.item() for loss in network(pixels[positions], noise).values())

    return Training(network, losses, lambda: bound(test), lambda: bound(validation))


PROBLEM = Problem(
    name="VAE",
    start=start,
    steps=640,  # 40 epochs
    weightings=(EQUAL, Weighting("KL 100", factors(KL, by=1e2)), Weighting("KL 0.01", factors(KL, by=1e-2))),
    score="negative ELBO, nats per image",
    worst=1000.0,
    orders={"reconstruction first": (RECONSTRUCTION, KL), "KL first": (KL, RECONSTRUCTION)},
)
