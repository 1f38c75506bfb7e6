"""The rules that CombinedAdam and TorchJD share, and the weights that each must find, computed independently."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from bench.workloads.shapes import Grads
from mtadam_fused.rules import MGDA, FixedWeights, PCGrad, Rule

SEED = 0


def gram_matrix(grads: Grads) -> np.ndarray:
    """Return the [K, K] dot products of the terms' gradients, in float64."""
    gram = np.zeros((len(grads), len(grads)))
    for of_param in zip(*grads, strict=True):
        rows = torch.stack([g.flatten() for g in of_param]).double()
        gram += (rows @ rows.T).cpu().numpy()
    return gram


def pcgrad_weights(gram: np.ndarray) -> np.ndarray:
    """Return PCGrad's weights (arXiv 2001.06782, algorithm 1), with the orders of the first step."""
    total = np.zeros(len(gram))
    for k, order in enumerate(PCGrad(seed=SEED).orders(len(gram)).tolist()):
        weights = np.eye(len(gram))[k]
        for j in order:
            if j != k and gram[j] @ weights < 0:
                weights[j] -= gram[j] @ weights / gram[j, j]
        total += weights
    return total


def mgda_weights(gram: np.ndarray) -> np.ndarray:
    """Return MGDA's weights by non-negative least squares: of ``|G'w|^2 + (1 - sum w)^2``, scaled to the sum 1."""
    from scipy.optimize import nnls  # which a machine that is measured need not have

    root = np.linalg.cholesky(gram / gram.diagonal().min())
    weights, _ = nnls(np.vstack([root.T, np.ones(len(gram))]), np.eye(len(gram) + 1)[-1])
    return weights / weights.sum()


@dataclass(frozen=True)
class RuleSpec:
    """A rule of ours, the aggregator of TorchJD that does the same, and the weights that they should find."""

    rule: Callable[[], Rule]
    aggregator: str
    weights: Callable[[np.ndarray], np.ndarray]  # from the dot products


RULES = {
    "FixedWeights": RuleSpec(FixedWeights, "Sum", lambda gram: np.ones(len(gram))),
    "PCGrad": RuleSpec(lambda: PCGrad(seed=SEED), "PCGrad", pcgrad_weights),
    "MGDA": RuleSpec(MGDA, "MGDA", mgda_weights),
}
