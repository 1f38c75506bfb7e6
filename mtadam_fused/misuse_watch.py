"""Warnings, once each, of what is easy to get wrong and is no error."""

from collections.abc import Sequence

from torch import Tensor

from .distributed.communicator import Communicator
from .gradients.collector import GradientCollector
from .hyperparameters import Term
from .warn import warn_user

SETTLED = 10  # steps, after which a new term is unexpected
SAMPLE = 8  # parameters, or a few more, that each step looks at for gradients of other origin

NEW_TERM = (
    "If it is a misspelled one, it will be balanced as a term of its own. Give all names as terms= when you make the "
    "optimizer."
)
IGNORED_GRADIENTS = (
    "step() ignores gradients in p.grad, which something other than optimizer.backward() has left there since. Give "
    "that loss to optimizer.backward({...}) as a term; or, if it trains other parameters, keep it from these ones "
    "(detach(), or backward(inputs=...))."
)
IGNORED_PROCESSES = (
    "the optimizer averages no gradients over them: replicas drift apart. Make it with "
    "process_group=torch.distributed.group.WORLD, and under DistributedDataParallel run forward and backward passes in "
    "its no_sync(). Lightning and Accelerate need it too."
)
LONE_WEIGHTS = (
    "the rule looks at this one's batch alone: each process weights the terms in its own way. Make the optimizer with "
    "process_group=torch.distributed.group.WORLD, and under DistributedDataParallel run forward and backward passes in "
    "its no_sync()."
)


class MisuseWatch:
    """Look at one optimizer's calls.

    Args:
        is_settled: whether its terms come from an earlier run.
    """

    def __init__(self, *, is_settled: bool) -> None:
        self._is_settled = is_settled
        self._steps = 0
        self._warned: set[str] = set()

    def look_at_terms(self, terms: Sequence[Term], known: Sequence[Term]) -> None:
        """Warn of a new term late in a run; ``terms`` are the ``known`` ones and the new ones."""
        if len(terms) > len(known) > 0 and (self._is_settled or self._steps >= SETTLED):
            self._warn_once(f"{terms[-1]!r} is a new term, and the terms so far are {list(known)}. ", NEW_TERM)

    def look_at_step(
        self, params: Sequence[Tensor], collector: GradientCollector, communicator: Communicator, *, weighs_batch: bool
    ) -> None:
        """Warn, before a step, of gradients that it ignores and of processes that it knows nothing of.

        Args:
            weighs_batch: whether the weights of the terms depend on the batch.
        """
        stride = max(1, len(params) // SAMPLE)  # looking at all, in every step, would take as long as a small step
        sample = params[self._steps % stride :: stride]
        if any(p.grad is not None for p in sample) and collector.has_unowned_grads(params):
            self._warn_once("", IGNORED_GRADIENTS)
        # DistributedDataParallel can average the gradients of one pass for all terms, but not their weights.
        looks = self._steps == 0 and (weighs_batch or not collector.is_sum)
        if looks and (processes := communicator.ignored_processes()):
            remedy = LONE_WEIGHTS if collector.is_sum else IGNORED_PROCESSES
            self._warn_once(f"this is one of {processes} processes, and ", remedy)
        self._steps += 1

    def _warn_once(self, fact: str, remedy: str) -> None:
        if remedy not in self._warned:
            self._warned.add(remedy)
            warn_user(fact + remedy)
