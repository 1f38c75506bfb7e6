"""Burgers' equation by a physics-informed network: u_t + u u_x = nu u_xx on [-1, 1] x [0, 1], from -sin(pi x)."""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from bench.quality.jets import jet_at, make_network, propagate
from bench.quality.problem import EQUAL, Losses, Problem, Training, Weighting, factors

NU = 0.03
POINTS = 20  # along each axis
RESIDUAL, INITIAL, BOUNDARY = "residual", "initial", "boundary"


@cache
def solution(points: int = 65) -> Tensor:
    """Return the solution on a grid, [points of t, points of x], by the Cole-Hopf formula.

    u = -integral of sin(pi y) w dy / integral of w dy, where y = x - z, w = exp(-cos(pi y) / (2 pi nu)) and z is
    normal of variance 2 nu t; the integrals by Gauss-Hermite quadrature.
    """
    nodes, node_weights = np.polynomial.hermite.hermgauss(200)
    t, x = np.linspace(0, 1, points)[:, None, None], np.linspace(-1, 1, points)[:, None]
    y = x - np.sqrt(4 * NU * t) * nodes
    w = node_weights * np.exp(-(1 + np.cos(np.pi * y)) / (2 * np.pi * NU))  # the 1 cancels, and keeps w below 1
    return torch.tensor(-(np.sin(np.pi * y) * w).sum(axis=-1) / w.sum(axis=-1), dtype=torch.float32)


def grid(points: int) -> Tensor:
    """Return the [points**2, 2] pairs (x, t), in the order of :func:`solution`."""
    t, x = torch.meshgrid(torch.linspace(0, 1, points), torch.linspace(-1, 1, points), indexing="ij")
    return torch.stack([x.flatten(), t.flatten()], dim=1)


def start(seed: int) -> Training:
    """Make the network, its three loss terms, and its relative error."""
    network = make_network(inputs=2, width=20, depth=3, seed=seed)
    jet = jet_at(grid(POINTS))
    x = torch.linspace(-1, 1, 4 * POINTS)[:, None]
    beginning, profile = torch.cat([x, torch.zeros_like(x)], dim=1), -torch.sin(math.pi * x)
    ends = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.linspace(0, 1, POINTS))
    exact = solution()
    everywhere = grid(len(exact))

    def losses() -> Losses:
        u, u_xx, u_x, u_t = propagate(network, jet)
        return {
            RESIDUAL: (u_t + u * u_x - NU * u_xx).square().mean(),
            INITIAL: (network(beginning) - profile).square().mean(),
            BOUNDARY: network(ends).square().mean(),
        }

    @torch.no_grad()
    def error() -> float:
        return ((network(everywhere).view_as(exact) - exact).norm() / exact.norm()).item()

    return Training(network, losses, error)


PROBLEM = Problem(
    name="Burgers",
    start=start,
    steps=1500,
    weightings=(
        EQUAL,
        Weighting("initial, boundary 100", factors(INITIAL, BOUNDARY, by=1e2)),
        Weighting("initial, boundary 0.01", factors(INITIAL, BOUNDARY, by=1e-2)),
    ),
    by_hand=(
        EQUAL,
        *(Weighting(f"initial, boundary {by:g}", factors(INITIAL, BOUNDARY, by=by)) for by in (10, 100, 1e3)),
    ),
    score="relative L2 error",
    worst=100.0,
    orders={"residual first": (RESIDUAL, INITIAL, BOUNDARY), "boundary first": (BOUNDARY, INITIAL, RESIDUAL)},
    spans_decades=True,
    cosine=True,
)
