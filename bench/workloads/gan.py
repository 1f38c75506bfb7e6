"""DCGAN at its generator's step, with three losses: two reach the generator through discriminators.

One discriminator is about as large as the generator. Several judge what one generator makes in HiFi-GAN
(arXiv 2010.05646), pix2pixHD (arXiv 1711.11585) and others, and cost more than it does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

WIDTH, BATCH, CODE = 32, 8, 100  # channels before the last layer; arXiv 1511.06434 has 64
SIDE = 64


def make_generator() -> nn.Sequential:
    """Make the generator (arXiv 1511.06434, figure 1): codes ``[N, CODE, 1, 1]`` to images ``[N, 3, SIDE, SIDE]``."""
    widths = [8 * WIDTH, 4 * WIDTH, 2 * WIDTH, WIDTH]
    layers: list[nn.Module] = [nn.ConvTranspose2d(CODE, widths[0], 4, bias=False)]
    for wide, narrow in pairwise(widths):
        layers += [nn.BatchNorm2d(wide), nn.ReLU(), nn.ConvTranspose2d(wide, narrow, 4, 2, 1, bias=False)]
    return nn.Sequential(*layers, nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.ConvTranspose2d(WIDTH, 3, 4, 2, 1), nn.Tanh())


def make_discriminator() -> tuple[nn.Sequential, nn.Conv2d]:
    """Make the discriminator: from images to features ``[N, 8 * WIDTH, 4, 4]``, and from these to its verdict."""
    widths = [WIDTH, 2 * WIDTH, 4 * WIDTH, 8 * WIDTH]
    layers: list[nn.Module] = [nn.Conv2d(3, WIDTH, 4, 2, 1), nn.LeakyReLU(0.2)]
    for narrow, wide in pairwise(widths):
        layers += [nn.Conv2d(narrow, wide, 4, 2, 1, bias=False), nn.BatchNorm2d(wide), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers), nn.Conv2d(8 * WIDTH, 1, 4)


@dataclass(frozen=True)
class Gan:
    """The networks, and a batch of codes and images."""

    generator: nn.Sequential
    discriminators: list[tuple[nn.Sequential, nn.Conv2d]]
    codes: Tensor
    images: Tensor

    @property
    def discriminator_params(self) -> list[nn.Parameter]:
        """Return the parameters that the generator's step leaves as they are."""
        return [p for pair in self.discriminators for part in pair for p in part.parameters()]

    def stream(self) -> Callable[[], dict[str, Tensor]]:
        """Return a function that returns the generator's losses, on the same batch each time.

        It first drops the discriminators' gradients, as their own step would.
        """
        with torch.no_grad():
            real = [features(self.images).mean(dim=0) for features, _ in self.discriminators]

        def losses() -> dict[str, Tensor]:
            for p in self.discriminator_params:
                p.grad = None
            made = self.generator(self.codes)
            seen = [features(made) for features, _ in self.discriminators]
            verdicts = [verdict(of) for of, (_, verdict) in zip(seen, self.discriminators, strict=True)]
            pairs = zip(seen, real, strict=True)
            return {
                "adversarial": functional.softplus(-torch.cat(verdicts)).mean(),
                "features": torch.stack([functional.mse_loss(of.mean(dim=0), true) for of, true in pairs]).mean(),
                "pixels": functional.l1_loss(made, self.images),
            }

        return losses


def make_gan(discriminators: int, device: torch.device) -> Gan:
    """Make the same networks and batch each time."""
    torch.manual_seed(0)
    generator = make_generator().to(device)
    pairs = [make_discriminator() for _ in range(discriminators)]
    codes, images = torch.randn(BATCH, CODE, 1, 1), torch.rand(BATCH, 3, SIDE, SIDE) * 2 - 1
    on_device = [(features.to(device), verdict.to(device)) for features, verdict in pairs]
    return Gan(generator, on_device, codes.to(device), images.to(device))


# By name: how many discriminators there are.
GANS = {"dcgan": 1, "dcgan_4": 4}
