"""Train a generator with three losses: fool the discriminator, match its features, and show the wanted digit.

python examples/gan.py            # half a minute; compares BalancedAdam with Adam on the plain sum
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot, softplus

from mtadam_fused import BalancedAdam

NOISE, CLASSES = 16, 10


class Discriminator(nn.Module):
    """Says of an image whether it is real, and which digit it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(64, 128), nn.LeakyReLU(0.2), nn.Linear(128, 128), nn.LeakyReLU(0.2))
        self.real, self.digit = nn.Linear(128, 1), nn.Linear(128, CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self.features(images)
        return features, self.real(features), self.digit(features)


def digits() -> tuple[Tensor, Tensor]:
    found = load_digits()
    return torch.tensor(found.data / 8 - 1, dtype=torch.float32), torch.tensor(found.target)


def train_judge(images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    """Train a classifier on real digits. It says later how many generated ones show what they should."""
    judge = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, CLASSES))
    optimizer = torch.optim.Adam(judge.parameters(), lr=1e-2)
    for _ in range(min(steps, 300)):
        optimizer.zero_grad()
        cross_entropy(judge(images), labels).backward()
        optimizer.step()
    return judge


def generator_losses(discriminator: nn.Module, fake: Tensor, real: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    features, realness, digit = discriminator(fake)
    # Badly chosen weights: on the plain sum the second loss drowns the third.
    return {
        "adversarial": softplus(-realness).mean(),
        "features": 100 * (features.mean(0) - discriminator(real)[0].mean(0)).square().sum(),
        "digit": 0.01 * cross_entropy(digit, wanted),
    }


def train(balanced: bool, images: Tensor, labels: Tensor, steps: int) -> nn.Module:
    torch.manual_seed(0)
    generator = nn.Sequential(nn.Linear(NOISE + CLASSES, 128), nn.ReLU(), nn.Linear(128, 64), nn.Tanh())
    discriminator = Discriminator()
    params = list(generator.parameters())
    optimizer = BalancedAdam(params, lr=1e-3) if balanced else torch.optim.Adam(params, lr=1e-3)
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-3, betas=(0.5, 0.9))
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        real, wanted = images[rows], labels[rows]
        fake = generator(torch.cat([torch.randn(64, NOISE), one_hot(wanted, CLASSES)], dim=1))

        _, realness, digit = discriminator(real)
        _, fakeness, _ = discriminator(fake.detach())
        discriminator_optimizer.zero_grad()
        (softplus(-realness).mean() + softplus(fakeness).mean() + cross_entropy(digit, wanted)).backward()
        discriminator_optimizer.step()

        losses = generator_losses(discriminator, fake, real, wanted)
        optimizer.zero_grad()
        if isinstance(optimizer, BalancedAdam):
            optimizer.backward(losses, inputs=params)  # spares K times the gradients of the discriminator
        else:
            torch.autograd.backward(sum(losses.values(), torch.zeros(())), inputs=params)
        optimizer.step()
    return generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("build/examples/gan.png"))
    args = parser.parse_args()
    torch.manual_seed(0)
    images, labels = digits()
    judge = train_judge(images, labels, args.steps)
    wanted = torch.arange(CLASSES).repeat(100)
    figure, rows = plt.subplots(2, CLASSES, figsize=(CLASSES, 2.6))
    for axes, balanced in zip(rows, (False, True), strict=True):
        generator = train(balanced, images, labels, args.steps)
        with torch.no_grad():
            fake = generator(torch.cat([torch.randn(len(wanted), NOISE), one_hot(wanted, CLASSES)], dim=1))
            right = (judge(fake).argmax(1) == wanted).float().mean()
        name = "BalancedAdam" if balanced else "Adam on the sum"
        print(f"{name}: {100 * right:.1f} % of the generated digits are recognized as what they should be")
        axes[0].set_title(name, loc="left")
        for axis, image in zip(axes, fake, strict=False):
            axis.imshow(image.reshape(8, 8), cmap="gray")
            axis.axis("off")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=100, bbox_inches="tight")


if __name__ == "__main__":
    main()
