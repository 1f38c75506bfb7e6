"""The optimizers that are compared in the step, each ready to make it."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from bench.harness import byte_model
from bench.harness.agreement import adam, mtadam
from bench.harness.devices import Device, captured
from bench.harness.measure import Contender, Failure, LeftOutError, in_a_line
from bench.peers.compiled import make_compiled
from bench.workloads.shapes import GPU_ONLY, Case, Grads, elements
from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.backends import select_backend, statuses
from mtadam_fused.backends.registry import AUTO
from oracles.published_loop import PublishedMTAdam

COPIED_ELEMENTS = 2**25  # at least: enough to leave the caches
ONE_LAUNCH = "cuda-one-launch"
PAIRS_A_SECOND = 2.5  # of a tensor and a term: what torch.compile manages on one core


@dataclass(frozen=True)
class Peer:
    """A contender that can be made for a case."""

    make: Callable[[Case, Device, Grads], Contender]
    floats: Callable[[int], int]  # kept by K terms and by its step's temporaries, in elements per parameter element
    slow: bool = False  # loops over tensors and terms, with many passes over memory
    compiled: bool = False


def give(optimizer: MTAdam | CombinedAdam, params: Sequence[Tensor], grads: Grads) -> None:
    """Hands the gradients of each term to the optimizer, as its backward passes would."""
    for k, of_term in enumerate(grads):
        with optimizer.term(k):
            for p, g in zip(params, of_term, strict=True):
                p.grad = g


def auto_backend(device: Device) -> str:
    """The backend that MTAdam takes by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return select_backend("auto", device.place).name


def make_mtadam(backend: str, case: Case, device: Device, grads: Grads) -> Contender:
    """Make our step. Taking the gradients is not timed."""
    params = case.params(device.place)
    optimizer = MTAdam(params, backend=backend)
    moved = byte_model.mtadam_step(case.terms, case.element) * elements(params)
    return Contender(
        f"mtadam-{backend}",
        optimizer.step,
        params,
        prepare=lambda: give(optimizer, params, grads),
        bytes_moved=moved,
        state=optimizer.state,
        oracle=mtadam,
        exact=True,
    )


def make_graph(backend: str, case: Case, device: Device, grads: Grads) -> Contender:
    """Our step as a CUDA graph that is replayed."""
    eager = make_mtadam(backend, case, device, grads)
    eager.prepare()
    eager.run()  # allocates the state
    eager.prepare()
    graph = torch.cuda.CUDAGraph()
    with captured(graph):
        eager.run()
    with torch.no_grad():  # back to the start, in place
        for p, fresh in zip(eager.params, case.params(device.place), strict=True):
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


def make_published(case: Case, device: Device, grads: Grads) -> Contender:
    """The published loop."""
    if case.dtype != torch.float32:
        raise LeftOutError("the published loop keeps its moments in the parameters' type")
    params = case.params(device.place)
    loop = PublishedMTAdam([{"params": params}], terms=case.terms)
    moved = byte_model.published_step(case.terms) * elements(params)
    return Contender(
        "published",
        lambda: loop.step(grads),
        params,
        bytes_moved=moved,
        state=loop.state,
        oracle=mtadam,
    )


def make_adam_on_sum(case: Case, device: Device, grads: Grads) -> Contender:
    """One fused Adam; a sum of losses gives its gradient by itself, so any gradient stands for the sum's."""
    params = case.params(device.place)
    optimizer = torch.optim.Adam(params, fused=True)
    for p, g in zip(params, grads[0], strict=True):
        p.grad = g
    moved = byte_model.adam_step(case.element) * elements(params)
    # Adam keeps 16-bit moments for 16-bit parameters, which no formula in float64 agrees with.
    oracle = adam if case.dtype == torch.float32 else None
    return Contender("adam-on-sum", optimizer.step, params, bytes_moved=moved, state=optimizer.state, oracle=oracle)


def make_adam_k_times(case: Case, device: Device, grads: Grads) -> Contender:
    """A step of fused Adam on each term's gradients in turn."""
    params = case.params(device.place)
    optimizer = torch.optim.Adam(params, fused=True)

    def run() -> None:
        for of_term in grads:
            for p, g in zip(params, of_term, strict=True):
                p.grad = g
            optimizer.step()

    moved = case.terms * byte_model.adam_step(case.element) * elements(params)
    return Contender("adam-k-times", run, params, bytes_moved=moved)


def make_copy(case: Case, device: Device, grads: Grads) -> Contender:
    """A copy within the device's memory, of as many elements as there are parameters."""
    count = max(elements(grads[0]), COPIED_ELEMENTS)
    source = torch.ones(count, dtype=case.dtype, device=device.place)
    target = torch.empty_like(source)
    moved = byte_model.copy(case.element) * count
    return Contender("copy", lambda: target.copy_(source), bytes_moved=moved)


def ours(backend: str, make: Callable[[str, Case, Device, Grads], Contender], floats: Callable[[int], int]) -> Peer:
    """Our optimizer on one backend."""

    def make_where_usable(case: Case, device: Device, grads: Grads) -> Contender:
        if backend not in (*AUTO, ONE_LAUNCH):
            raise LeftOutError(statuses()[backend].reason)
        try:
            select_backend(backend, device.place)
        except RuntimeError as error:
            raise LeftOutError(str(error)) from None
        return make(backend, case, device, grads)

    return Peer(make_where_usable, floats, slow=backend == "reference")


# By name, most wanted first: what does not fit into the memory beside those before it is left out.
PEERS: dict[str, Peer] = dict(
    chain(
        ((f"mtadam-{backend}", ours(backend, make_mtadam, lambda terms: terms + 2)) for backend in statuses()),
        {
            "copy": Peer(make_copy, lambda terms: 2),
            "adam-on-sum": Peer(make_adam_on_sum, lambda terms: 3),
            "adam-k-times": Peer(make_adam_k_times, lambda terms: 3),
            **{
                f"mtadam-{backend}-graph": ours(backend, make_graph, lambda terms: terms + 2)
                for backend in ("cuda", ONE_LAUNCH, "triton")
            },
            "compiled": Peer(make_compiled, lambda terms: terms + 2, compiled=True),
            "published": Peer(make_published, lambda terms: 4 * terms + 4, slow=True),
        }.items(),
    )
)


def make_contenders(
    case: Case, device: Device, peers: Mapping[str, Peer] = PEERS, share: float = 1.0
) -> tuple[Grads, list[Contender], dict[str, str]]:
    """The gradients of a case, the contenders that step with them here, and why the others do not.

    Args:
        share: of the device's limits for slow contenders.
    """
    size = elements([torch.empty(shape, device="meta") for shape in case.shapes])
    room = 0.8 * device.free() - 4 * size * case.terms  # what the gradients leave
    if case.workload in GPU_ONLY and device.place.type == "cpu":
        return [], [], dict.fromkeys(peers, "on a GPU only")
    left_out: dict[str, str] = {}
    contenders: list[Contender] = []
    grads = case.grads(device.place) if room > 0 else []
    for name, peer in peers.items():
        needed = 4 * size * peer.floats(case.terms)
        try:
            if needed > room:
                raise LeftOutError(f"needs {needed / 1e9:.0f} GB beside the others: more than are free")
            if peer.slow and size * case.terms > share * device.slow_limit:
                raise LeftOutError("too slow here for so many elements and terms")
            if peer.slow and len(case.shapes) * case.terms > share * device.loop_limit:
                raise LeftOutError("too slow here for so many tensors and terms")
            if peer.compiled and len(case.shapes) * case.terms > share * PAIRS_A_SECOND * device.compile_seconds:
                raise LeftOutError("compiling so many tensors and terms takes too long (see --compile-seconds)")
            contenders.append(peer.make(case, device, grads))
            room -= needed
        except LeftOutError as error:
            left_out[name] = str(error)
        except Exception as error:  # whatever a compiler or the device raises
            left_out[name] = Failure(f"FAILED: {in_a_line(error)}")
    return grads, contenders, left_out
