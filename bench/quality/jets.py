"""Values and derivatives of a tanh network, carried through it together.

That costs one forward pass and one backward pass. Derivatives by autograd would cost a backward pass each, and a
backward pass through it.
"""

import torch
from torch import Tensor, nn


def make_network(inputs: int, width: int, depth: int, seed: int) -> nn.Sequential:
    """Make a tanh network with ``depth`` hidden layers and one output, by Glorot's initialization, as PINNs have it."""
    torch.manual_seed(seed)
    network = nn.Sequential()
    for _ in range(depth):
        network.extend([nn.Linear(inputs, width), nn.Tanh()])
        inputs = width
    network.append(nn.Linear(inputs, 1))
    for name, p in network.named_parameters():
        if name.endswith("weight"):
            nn.init.xavier_normal_(p)
        else:
            nn.init.zeros_(p)
    return network


def jet_at(points: Tensor) -> Tensor:
    """Return the jet of the identity at ``points`` [N, D], of shape [D + 2, N, D]; see :func:`propagate`."""
    count, inputs = points.shape
    slopes = torch.eye(inputs)[:, None, :].expand(inputs, count, inputs)
    return torch.cat([points[None], torch.zeros(1, count, inputs), slopes])


def propagate(network: nn.Sequential, jet: Tensor) -> Tensor:
    """Return the network's value and derivatives at some points.

    Args:
        network: of linear layers and tanh.
        jet: of :func:`jet_at`, for N points with D coordinates.

    Returns:
        [D + 2, N]: value, second derivative by the first coordinate, first derivatives by each of them.
    """
    is_value = torch.zeros(len(jet), 1, 1)
    is_value[0] = 1
    for layer in network:
        if isinstance(layer, nn.Linear):  # a bias shifts values only
            jet = torch.addcmul(jet @ layer.weight.T, is_value, layer.bias)
        else:
            jet = propagate_tanh(jet)
    return jet.squeeze(-1)


def propagate_tanh(jet: Tensor) -> Tensor:
    """Apply tanh: its derivative is 1 - tanh^2, its second derivative -2 tanh (1 - tanh^2)."""
    value = torch.tanh(jet[0])
    derivative = 1 - value * value
    slopes = derivative * jet[2:]
    curvature = derivative * jet[1] - 2 * value * slopes[0] * jet[2]
    return torch.cat([value[None], curvature[None], slopes])
