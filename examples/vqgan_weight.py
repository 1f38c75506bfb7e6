"""VQGAN's adaptive weight: the discriminator's loss pulls at the decoder's last layer as hard as the reconstruction's.

    python examples/vqgan_weight.py   # half a minute

The rule looks at the last layer only, so each step makes one backward pass through the rest of the network.
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import softplus

from mtadam_fused import CombinedAdam
from mtadam_fused.rules import FixedWeights, GradientNormalization

WEIGHTS = {"reconstruction": 1.0, "discriminator": 0.1}


def train(images: Tensor, steps: int, size: float, adaptive: bool) -> tuple[float, float]:
    """Return the reconstruction's error and the discriminator's last weight; its loss is ``size`` times as large."""
    torch.manual_seed(0)
    last_layer = nn.Linear(128, 64)
    encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 8))
    decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), last_layer)
    discriminator = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 1))
    params = [*encoder.parameters(), *decoder.parameters()]
    at_last_layer = GradientNormalization(
        anchor="reconstruction", clamp=(0, 1e4), eps=1e-4, parameters=last_layer.weight, preference=WEIGHTS
    )
    rule = at_last_layer if adaptive else FixedWeights(WEIGHTS)
    optimizer = CombinedAdam(params, rule, lr=1e-3, terms=tuple(WEIGHTS))
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for step in range(steps):
        batch = images[torch.randint(len(images), (64,))]
        found = decoder(encoder(batch))
        losses = {"reconstruction": (found - batch).abs().mean()}
        if step >= steps // 4:  # it takes part later, as in VQGAN
            losses["discriminator"] = size * softplus(-discriminator(found)).mean()
        optimizer.zero_grad()
        optimizer.backward(losses)
        optimizer.step()

        discriminator_optimizer.zero_grad()
        fake = decoder(encoder(batch)).detach()
        (softplus(-discriminator(batch)).mean() + softplus(discriminator(fake)).mean()).backward()
        discriminator_optimizer.step()
    with torch.no_grad():
        error = (decoder(encoder(images)) - images).abs().mean().item()
    return error, optimizer.last_weights()["discriminator"].item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    args = parser.parse_args()
    images = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    for size in (1.0, 1000.0):
        for adaptive in (False, True):
            error, weight = train(images, args.steps, size, adaptive)
            kind = "adaptive" if adaptive else "fixed"
            print(f"discriminator's loss times {size:g}, {kind} weight {weight:.2g}: reconstruction error {error:.3f}")


if __name__ == "__main__":
    main()
