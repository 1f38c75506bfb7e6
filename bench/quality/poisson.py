"""The 1-D Poisson equation by a physics-informed network: u'' = f on [0, 1], with the solution sin(4 pi x)."""

import math

import torch

from bench.quality.jets import jet_at, make_network, propagate
from bench.quality.problem import EQUAL, Losses, Problem, Training, Weighting, factors

POINTS = 64
WAVES = 2
RESIDUAL, BOUNDARY = "residual", "boundary"


def start(seed: int) -> Training:
    """Make the network, its two loss terms, and its relative error."""
    network = make_network(inputs=1, width=32, depth=2, seed=seed)
    x = torch.linspace(0, 1, POINTS)[:, None]
    wave = 2 * math.pi * WAVES
    exact = torch.sin(wave * x[:, 0])
    jet = jet_at(x)
    ends = torch.tensor([[0.0], [1.0]])

    def losses() -> Losses:
        second = propagate(network, jet)[1]
        return {RESIDUAL: (second + wave**2 * exact).square().mean(), BOUNDARY: network(ends).square().mean()}

    @torch.no_grad()
    def error() -> float:
        return ((network(x)[:, 0] - exact).norm() / exact.norm()).item()

    return Training(network, losses, error)


PROBLEM = Problem(
    name="Poisson",
    start=start,
    steps=2000,
    weightings=(
        EQUAL,
        Weighting("boundary 100", factors(BOUNDARY, by=1e2)),
        Weighting("boundary 0.01", factors(BOUNDARY, by=1e-2)),
        Weighting("boundary 1e-3", factors(BOUNDARY, by=1e-3)),
    ),
    by_hand=(EQUAL, *(Weighting(f"boundary {by:g}", factors(BOUNDARY, by=by)) for by in (10, 100, 1e3, 1e4))),
    score="relative L2 error",
    worst=100.0,
    orders={"residual first": (RESIDUAL, BOUNDARY), "boundary first": (BOUNDARY, RESIDUAL)},
    spans_decades=True,
    cosine=True,
)
