"""CombinedAdam with one backward pass for all terms: the same steps as with a pass per term, at fewer passes."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mtadam_fused import CombinedAdam
from mtadam_fused.rules import MGDA, FixedWeights, GradNorm, PCGrad, Rule
from oracles.tolerances import TooFar
from tests.support.shared_trunk import TERMS, Trunk, train


class ByLoss(Rule):
    """Weight by the reciprocal of the loss: looks at losses alone."""

    needs_gram, needs_losses = False, True

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        return 1.0 / losses


def looking_at(rule: Rule, parameters: list[Tensor]) -> Rule:
    """Let a rule look at the gradients of some parameters."""
    rule.parameters = parameters
    return rule


RULES: dict[str, Callable[[list[Tensor]], Rule]] = {
    "fixed": lambda _: FixedWeights([1.0, 0.5, 2.0]),
    "losses": lambda _: ByLoss(),
    "GradNorm": lambda last: GradNorm(parameters=last),
    "PCGrad": lambda last: looking_at(PCGrad(seed=3), last),
    "MGDA": lambda last: looking_at(MGDA("loss+"), last),
}
EXACT = 1e-12


def check_close(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        if not (a - b).abs().max() <= EXACT:
            raise TooFar(f"{a} is not {b}")


def run(name: str, passes: str, **options: Any) -> tuple[list[Tensor], Trunk, CombinedAdam]:
    trunk = Trunk()
    rule = RULES[name](list(trunk.last.parameters()))
    optimizer = CombinedAdam(trunk.parameters(), rule, lr=1e-2, passes=passes, **options)

    def step(losses: dict[str, Tensor]) -> None:
        optimizer.backward(losses)
        optimizer.step()

    return train(trunk, step), trunk, optimizer


@pytest.mark.parametrize("backend", ["cpu", "reference"])
@pytest.mark.parametrize("name", RULES)
def test_same_steps_at_one_pass(name: str, backend: str) -> None:
    found, one, optimizer = run(name, "auto", backend=backend, amsgrad=True, weight_decay=0.1)
    expected, many, other = run(name, "per_term", backend=backend, amsgrad=True, weight_decay=0.1)
    check_close(found, expected)
    assert (one.passes, many.passes) == (6, 17)
    for term, weight in optimizer.last_weights().items():
        torch.testing.assert_close(weight, other.last_weights()[term], rtol=1e-9, atol=0)
    assert (optimizer.takes_one_pass, other.takes_one_pass) == (True, False)
    assert "one backward pass for all terms" in repr(optimizer)
    assert "a backward pass per term" in repr(other)


@pytest.mark.parametrize("name", RULES)
def test_other_weights_are_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _, _ = run(name, "per_term")
    kind = type(RULES[name]([torch.zeros(1)]))
    original = kind.__call__

    def spoiled(self: Rule, gram: Tensor, losses: Tensor) -> Tensor:
        return original(self, gram, losses) * torch.tensor([1.0, 1.0 + 1e-6, 1.0], dtype=torch.float64)[: len(losses)]

    monkeypatch.setattr(kind, "__call__", spoiled)
    found, _, _ = run(name, "auto")
    with pytest.raises(TooFar):
        check_close(found, expected)


def test_rules_over_all_shared_parameters_keep_a_pass_per_term() -> None:
    trunk = Trunk()
    optimizer = CombinedAdam(trunk.parameters(), PCGrad())
    assert not optimizer.takes_one_pass
    optimizer.backward(trunk.losses(trunk.features(0)))
    assert trunk.passes == 3


def test_a_sum_of_fixed_weights_accumulates() -> None:
    results = []
    for passes in ("auto", "per_term"):
        trunk = Trunk()
        optimizer = CombinedAdam(trunk.parameters(), FixedWeights([1.0, 0.5, 2.0]), lr=1e-2, passes=passes)
        for _ in range(3):
            for seed in (0, 1):
                optimizer.backward(trunk.losses(trunk.features(seed)))
            optimizer.step()
        results.append([p.detach() for p in trunk.parameters()])
    check_close(*results)


def make(rule: Callable[[list[Tensor]], Rule] = RULES["GradNorm"], **options: Any) -> tuple[Trunk, CombinedAdam]:
    trunk = Trunk()
    return trunk, CombinedAdam(trunk.parameters(), rule(list(trunk.last.parameters())), **options)


def test_weights_of_two_batches_cannot_be_combined() -> None:
    trunk, optimizer = make()
    optimizer.backward(trunk.losses(trunk.features(0)))
    with pytest.raises(RuntimeError, match=r"GradNorm.* another call of backward.*passes='per_term'"):
        optimizer.backward(trunk.losses(trunk.features(1)))
    before = [p.detach().clone() for p in trunk.parameters()]
    optimizer.step()  # the refusal has dropped what waited
    assert all(torch.equal(p, b) for p, b in zip(trunk.parameters(), before, strict=True))
    optimizer.backward(trunk.losses(trunk.features(1)))
    optimizer.step()


def test_term_blocks_keep_their_passes() -> None:
    trunk, optimizer = make(RULES["fixed"])
    losses = trunk.losses(trunk.features(0))
    with optimizer.term("a"):
        losses["a"].backward(retain_graph=True)
    optimizer.backward({term: losses[term] for term in ("b", "c")})  # joins those of the block, apart
    assert trunk.passes == 3
    optimizer.step()

    optimizer.backward(trunk.losses(trunk.features(1)))
    with pytest.raises(RuntimeError, match=r"cannot be combined with those of a term\(\) block"), optimizer.term("a"):
        pass
    optimizer.step()


def test_a_grad_scaler_needs_a_pass_per_term() -> None:
    trunk, optimizer = make()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    optimizer.backward({term: scaler.scale(loss) for term, loss in trunk.losses(trunk.features(0)).items()})
    with pytest.raises(RuntimeError, match="a GradScaler, whose scale the rule has seen"):
        scaler.step(optimizer.scaled)


@pytest.mark.parametrize("name", RULES)
def test_a_grad_scaler_changes_nothing(name: str) -> None:
    passes = "auto" if name == "fixed" else "per_term"
    results = []
    for scale in (1.0, 1024.0):
        trunk, optimizer = make(RULES[name], passes=passes, lr=1e-2)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)

        def step(losses: dict[str, Tensor], optimizer: Any = optimizer, scaler: Any = scaler) -> None:
            optimizer.zero_grad()
            optimizer.backward({term: scaler.scale(loss) for term, loss in losses.items()})
            scaler.step(optimizer.scaled)
            scaler.update()

        results.append(train(trunk, step))
    check_close(*results)


def test_inputs_are_kept_to() -> None:
    trunk, optimizer = make(RULES["fixed"])
    optimizer.backward(trunk.losses(trunk.features(0)), inputs=list(trunk.last.parameters()))
    optimizer.step()
    assert set(optimizer.state) == set(trunk.last.parameters())


def test_one_pass_where_the_inputs_have_all_that_the_rule_looks_at() -> None:
    weights = []
    for everything in (False, True):
        trunk, optimizer = make()
        optimizer.backward(trunk.losses(trunk.features(0)), inputs=trunk.parameters() if everything else None)
        optimizer.step()
        assert trunk.passes == 1
        weights.append(torch.stack(list(optimizer.last_weights().values())))
    assert torch.equal(*weights)
    trunk, optimizer = make()
    last = set(trunk.last.parameters())
    optimizer.backward(trunk.losses(trunk.features(0)), inputs=[p for p in trunk.parameters() if p not in last])
    assert trunk.passes == 3


def test_an_error_of_a_backward_pass_leaves_nothing() -> None:
    trunk, optimizer = make(RULES["fixed"])
    losses = trunk.losses(trunk.features(0))
    torch.autograd.grad(losses["b"], trunk.parameters(), allow_unused=True)  # which frees the graph
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.backward(losses)
    assert all(p.grad is None for p in trunk.parameters())
    assert not optimizer._collector
    assert optimizer._collector.weights is None


@pytest.mark.parametrize("name", RULES)
def test_combined_gradient_is_the_weighted_sum(name: str) -> None:
    grads = []
    for passes in ("auto", "per_term"):
        trunk, optimizer = make(RULES[name], passes=passes, keep_combined_grad=True)
        optimizer.backward(trunk.losses(trunk.features(0)))
        optimizer.step()
        grads.append([p.grad for p in trunk.parameters() if p.grad is not None])
    assert len(grads[0]) == len(trunk.parameters())
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-13)


def test_copies_and_checkpoints_go_on() -> None:
    _, trunk, optimizer = run("GradNorm", "auto")
    twin = copy.deepcopy(optimizer)
    assert twin.takes_one_pass
    assert pickle.loads(pickle.dumps(optimizer)).takes_one_pass
    other = Trunk()
    other_optimizer = CombinedAdam(other.parameters(), RULES["GradNorm"](list(other.last.parameters())), lr=1e-2)
    with torch.no_grad():
        for p, q in zip(other.parameters(), trunk.parameters(), strict=True):
            p.copy_(q)
    other_optimizer.load_state_dict(optimizer.state_dict())
    for t, o in ((trunk, optimizer), (other, other_optimizer)):
        o.backward(t.losses(t.features(9)))
        o.step()
    assert all(torch.equal(p, q) for p, q in zip(trunk.parameters(), other.parameters(), strict=True))


def test_bad_passes() -> None:
    with pytest.raises(ValueError, match="passes is 'one'; it must be one of auto, per_term"):
        make(passes="one")


def test_terms() -> None:
    trunk, optimizer = make()
    optimizer.backward(trunk.losses(trunk.features(0)))
    optimizer.step()
    assert optimizer.terms == TERMS
