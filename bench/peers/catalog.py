"""All peers of a step, by name, most wanted first: what does not fit into memory beside those before it is left out."""

from functools import partial
from itertools import chain

from bench.harness.side_by_side import Peer
from bench.peers.baselines import make_adam_k_times, make_adam_on_sum, make_copy, make_read, make_set
from bench.peers.compiled import make_compiled
from bench.peers.ours import ONE_LAUNCH, make_balanced, make_combined, make_graph, make_mtadam, make_taken, our_peer
from bench.peers.published import make_published
from bench.peers.torchjd import make_torchjd
from mtadam_fused.backends import statuses

STEP_PEERS: dict[str, Peer] = dict(
    chain(
        ((f"mtadam-{backend}", our_peer(backend, make_mtadam, lambda terms: terms + 2)) for backend in statuses()),
        ((f"balanced-{backend}", our_peer(backend, make_balanced, lambda terms: 3)) for backend in statuses()),
        {
            "copy": Peer(make_copy, lambda terms: 2),
            "adam-on-sum": Peer(make_adam_on_sum, lambda terms: 3),
            "adam-k-times": Peer(make_adam_k_times, lambda terms: 3),
            **{
                f"mtadam-{backend}-graph": our_peer(backend, make_graph, lambda terms: terms + 2)
                for backend in ("cuda", ONE_LAUNCH, "triton")
            },
            "compiled": Peer(make_compiled, lambda terms: terms + 2, compiled=True),
            "published": Peer(make_published, lambda terms: 4 * terms + 4, slow=True),
        }.items(),
    )
)

_LIMITED = ("mtadam-cpu", "balanced-cpu", "mtadam-cuda", "balanced-cuda", "adam-on-sum", "copy")
LIMIT_PEERS: dict[str, Peer] = {
    **{name: peer for name, peer in STEP_PEERS.items() if name in _LIMITED},
    "read": Peer(make_read, lambda terms: 1),
}

GRADIENT_PEERS: dict[str, Peer] = {
    "mtadam": Peer(make_taken, lambda terms: 1),
    "set-grad": Peer(make_set, lambda terms: 1),
}

COMBINE_PEERS: dict[str, Peer] = {
    **{
        f"combined-{backend}": our_peer(backend, make_combined, lambda terms: 3)
        for backend in statuses()
        if backend != ONE_LAUNCH
    },
    "torchjd": Peer(partial(make_torchjd, "torchjd"), lambda terms: 2 * terms + 5),
    "torchjd-layerwise": Peer(partial(make_torchjd, "torchjd-layerwise"), lambda terms: terms + 4),
    "copy": Peer(make_copy, lambda terms: 2),
    "adam-on-sum": Peer(make_adam_on_sum, lambda terms: 3),
}
