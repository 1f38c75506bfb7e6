"""Make our optimizers, each ready to step."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from bench.harness import byte_model
from bench.harness.agreement import balanced_adam, mtadam, weighted_adam
from bench.harness.devices import Device, capture_graph
from bench.harness.measure import Contender, LeftOutError, Oracle
from bench.harness.side_by_side import Peer
from bench.peers.rules import RULES, gram_matrix
from bench.workloads.shapes import Case, Grads, count_elements
from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.backends import select_backend, statuses
from mtadam_fused.backends.registry import AUTO

ONE_LAUNCH = "cuda-one-launch"
ROUNDING = torch.finfo(torch.float32).eps  # of the arithmetic


def set_gradients(optimizer: MTAdam | CombinedAdam, params: Sequence[Tensor], grads: Grads) -> None:
    """Pass the gradients of each term to the optimizer, as its backward passes would."""
    for k, of_term in enumerate(grads):
        with optimizer.term(k):
            for p, g in zip(params, of_term, strict=True):
                p.grad = g


def auto_backend(device: Device) -> str:
    """Return the backend that "auto" selects."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return select_backend("auto", device.torch_device).name


def make_eager(name: str, optimizer: MTAdam | CombinedAdam, grads: Grads, moved: float, oracle: Oracle) -> Contender:
    """Make a contender of our optimizer, launched eagerly. Taking the gradients is not timed."""
    (group,) = optimizer.param_groups
    params = group["params"]
    return Contender(
        name,
        optimizer.step,
        params,
        prepare=lambda: set_gradients(optimizer, params, grads),
        bytes_moved=moved,
        state=optimizer.state,
        oracle=oracle,
        exact=True,
    )


def make_mtadam(backend: str, case: Case, device: Device, grads: Grads) -> Contender:
    """Make MTAdam's step."""
    params = case.params(device.torch_device)
    optimizer = MTAdam(params, backend=backend)
    moved = byte_model.mtadam_step(case.terms, case.element) * count_elements(params)
    return make_eager(f"mtadam-{backend}", optimizer, grads, moved, mtadam)


def make_taken(case: Case, device: Device, grads: Grads) -> Contender:
    """Make the taking of the gradients of all terms, which comes before a step. Dropping them is not timed."""
    params = case.params(device.torch_device)
    optimizer = MTAdam(params, backend="reference")
    return Contender("mtadam", lambda: set_gradients(optimizer, params, grads), prepare=optimizer.zero_grad)


def make_balanced(backend: str, case: Case, device: Device, grads: Grads) -> Contender:
    """Make BalancedAdam's step."""
    params = case.params(device.torch_device)
    # Each gradient of a parameter with one element becomes 1 or -1: with these weights no sum of them is 0 but for
    # rounding, which no oracle could predict.
    weights = [2.0**k for k in range(case.terms)]
    optimizer = BalancedAdam(params, term_weights=weights, backend=backend)
    moved = byte_model.balanced_step(case.terms, case.element) * count_elements(params)
    made = make_eager(f"balanced-{backend}", optimizer, grads, moved, balanced_adam(weights))
    return replace(made, rounding=ROUNDING)  # where the sum cancels in an element, this is all that is left


def make_graph(backend: str, case: Case, device: Device, grads: Grads) -> Contender:
    """Make our step as a CUDA graph that is replayed."""
    eager = make_mtadam(backend, case, device, grads)
    eager.prepare()
    eager.run()  # allocates the state
    eager.prepare()
    graph = torch.cuda.CUDAGraph()
    with capture_graph(graph):
        eager.run()
    with torch.no_grad():  # back to the start, in place
        for p, fresh in zip(eager.params, case.params(device.torch_device), strict=True):
            p.copy_(fresh)
            for name, value in eager.state[p].items():
                value.fill_(torch.nan if name == "norm_avg" else 0.0)
    return Contender(
        f"{eager.name}-graph",
        graph.replay,
        eager.params,
        bytes_moved=eager.bytes_moved,
        oracle=mtadam,
        exact=True,
        keeps=eager,  # the graph has addresses only, of the optimizer's tensors
    )


def our_peer(backend: str, make: Callable[[str, Case, Device, Grads], Contender], floats: Callable[[int], int]) -> Peer:
    """Make our optimizer on one backend a peer."""

    def make_where_usable(case: Case, device: Device, grads: Grads) -> Contender:
        if backend not in (*AUTO, ONE_LAUNCH):
            raise LeftOutError(statuses()[backend].reason)
        try:
            select_backend(backend, device.torch_device)
        except RuntimeError as error:
            raise LeftOutError(str(error)) from None
        return make(backend, case, device, grads)

    return Peer(make_where_usable, floats, slow=backend == "reference")


def make_combined(backend: str, case: Case, device: Device, grads: Grads) -> Contender:
    """Make CombinedAdam's weights and step."""
    params = case.params(device.torch_device)
    spec = RULES[case.rule]
    optimizer = CombinedAdam(params, spec.rule(), backend=backend)
    moved = byte_model.combined_step(case.terms, case.element, gram=optimizer.rule.needs_gram) * count_elements(params)
    oracle = weighted_adam(spec.weights(gram_matrix(grads)).tolist())
    made = make_eager(f"combined-{backend}", optimizer, grads, moved, oracle)
    return made if case.terms <= 4 else replace(made, rounding=ROUNDING)  # of more terms, a sum cancels somewhere
