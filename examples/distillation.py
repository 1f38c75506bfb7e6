"""Distill a teacher into a small student with three losses: labels, the teacher's answers, the teacher's features.

python examples/distillation.py   # ten seconds; compares BalancedAdam with Adam on the plain sum
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from mtadam_fused import BalancedAdam

TEMPERATURE = 4.0


class Classifier(nn.Module):
    """Return hidden features, and a score for each digit."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(64, width), nn.ReLU())
        self.scores = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.hidden(images)
        return features, self.scores(features)


def train_teacher(images: Tensor, digits: Tensor, steps: int) -> Classifier:
    torch.manual_seed(0)
    teacher = Classifier(256)
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        optimizer.zero_grad()
        cross_entropy(teacher(images[rows])[1], digits[rows]).backward()
        optimizer.step()
    return teacher.requires_grad_(False)


def train_student(balanced: bool, teacher: Classifier, images: Tensor, digits: Tensor, steps: int) -> Classifier:
    torch.manual_seed(1)
    student, bridge = Classifier(16), nn.Linear(16, 256)  # from its features to the teacher's
    params = [*student.parameters(), *bridge.parameters()]
    make = BalancedAdam if balanced else torch.optim.Adam
    optimizer = make(params, lr=1e-3)
    for _ in range(steps):
        rows = torch.randint(len(images), (64,))
        features, scores = student(images[rows])
        wanted_features, wanted = teacher(images[rows])
        answers = log_softmax(scores / TEMPERATURE, dim=1), softmax(wanted / TEMPERATURE, dim=1)
        losses = {
            "labels": cross_entropy(scores, digits[rows]),
            "answers": TEMPERATURE**2 * kl_div(*answers, reduction="batchmean"),
            "features": (bridge(features) - wanted_features).square().sum(1).mean(),  # hundreds of times as large
        }
        optimizer.zero_grad()
        if isinstance(optimizer, BalancedAdam):
            optimizer.backward(losses)
        else:
            sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
    return student


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2000)
    args = parser.parse_args()
    torch.manual_seed(0)
    images, digits = torch.tensor(load_digits().data / 16, dtype=torch.float32), torch.tensor(load_digits().target)
    order = torch.randperm(len(images))
    known, new = order[:1000], order[1000:]

    def accuracy(model: Classifier) -> float:
        return 100 * (model(images[new])[1].argmax(1) == digits[new]).float().mean().item()

    teacher = train_teacher(images[known], digits[known], args.steps)
    print(f"teacher: {accuracy(teacher):.1f} %")
    for balanced in (False, True):
        student = train_student(balanced, teacher, images[known], digits[known], args.steps)
        print(f"student, {'BalancedAdam' if balanced else 'Adam on the sum'}: {accuracy(student):.1f} %")


if __name__ == "__main__":
    main()
