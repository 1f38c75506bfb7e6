"""What users do in the middle of a training: freeze, regroup, move, exchange the rule, skip a batch."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.rules import GradientNormalization, GradNorm, UPGrad
from mtadam_fused.weighting import DWA, InitialLoss, ReLoBRaLo, RuleWeighting, SoftAdapt, Weighting
from oracles.tolerances import same


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk, self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 1), nn.Linear(4, 1)

    def losses(self, seed: int = 0) -> dict[str, Tensor]:
        h = self.trunk(torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))).tanh()
        return {"a": (self.a(h) - 1).square().mean(), "b": 100 * (self.b(h) + 2).abs().mean()}


# -- parameters --------------------------------------------------------------------------------------------------------


@pytest.fixture
def moving_in_place() -> Iterator[None]:
    """Let ``module.to`` keep the Parameter objects from meta to the CPU, as it does from the CPU to a GPU."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    yield
    torch.__future__.set_swap_module_params_on_conversion(before)


@pytest.mark.usefixtures("moving_in_place")
@pytest.mark.filterwarnings("ignore:mtadam_fused runs its slow")
def test_a_rule_follows_its_parameters_to_another_device() -> None:
    layer = nn.Linear(4, 4, device="meta")
    weighting = RuleWeighting(UPGrad(), parameters=layer.parameters())
    layer.to_empty(device="cpu")
    nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    out = layer(torch.ones(3, 4))
    total = weighting({"a": out.mean(), "b": out.square().mean()})
    assert total.isfinite()


@pytest.mark.usefixtures("moving_in_place")
@pytest.mark.filterwarnings("ignore:mtadam_fused runs its slow")
def test_reading_after_a_move_does_not_hinder_the_step() -> None:
    layer = nn.Linear(3, 3)
    optimizer = BalancedAdam(layer.parameters())
    for device in ("cpu", "meta"):
        layer.to(device)
        optimizer.term_scales()
        optimizer.backward([layer(torch.ones(2, 3, device=device)).sum()])
        optimizer.step()
    assert optimizer.state[layer.weight]["exp_avg"].device.type == "meta"


def test_a_frozen_parameter_of_the_rule_contributes_nothing() -> None:
    weights = []
    for passes in ("auto", "per_term"):
        network = Network()
        network.trunk.bias.requires_grad_(False)
        rule = UPGrad(parameters=network.trunk.parameters())
        optimizer = CombinedAdam(network.parameters(), rule, passes=passes)
        optimizer.backward(network.losses())
        optimizer.step()
        weights.append(torch.stack(list(optimizer.last_weights().values())))
    torch.testing.assert_close(*weights, rtol=1e-6, atol=0)
    network.trunk.requires_grad_(False)
    optimizer = CombinedAdam(network.parameters(), UPGrad(parameters=network.trunk.parameters()))
    with pytest.raises(RuntimeError, match=r"none of the losses \['a', 'b'\] reaches what the rule looks at"):
        optimizer.backward(network.losses())


def test_parameters_of_another_network_are_refused() -> None:
    network, other = Network(), Network()
    weighting = RuleWeighting(UPGrad(), parameters=other.trunk.parameters())
    with pytest.raises(RuntimeError, match=r"none of the losses .* name parameters of a layer that they are computed"):
        weighting(network.losses())


@pytest.mark.parametrize("terms", [None, ("a", "b")])
def test_terms_outlive_their_parameter_groups(terms: tuple[str, ...] | None, backend: str) -> None:
    results = []
    for regroup in (False, True):
        network = Network()
        optimizer = MTAdam(network.parameters(), terms=terms, backend=backend)
        for step in range(4):
            if regroup and step == 2:
                optimizer.param_groups.clear()
                optimizer.add_param_group({"params": list(network.parameters())})
            losses = network.losses(step)
            optimizer.backward(dict(reversed(losses.items())) if step == 2 else losses)
            optimizer.step()
        assert optimizer.terms == ("a", "b")
        results.append([p.detach() for p in network.parameters()])
    assert same(*results)


@pytest.mark.parametrize("make", [MTAdam, lambda params: CombinedAdam(params, UPGrad())])
def test_an_optimizer_without_parameters(make: Callable[[Any], Any]) -> None:
    optimizer = make([{"params": []}])
    network = Network()
    optimizer.backward(network.losses())
    norms = optimizer.clip_grad_norm_(1.0)
    assert not any(norms.values()) if isinstance(norms, dict) else norms == 0
    optimizer.step()
    if isinstance(optimizer, MTAdam):
        assert optimizer.running_norms()["a"].shape == (0,)


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_a_new_rule_is_asked_about_its_own_parameters() -> None:
    network = Network()
    layers = network.trunk.weight, network.trunk.bias
    optimizer = CombinedAdam(network.parameters(), GradientNormalization(parameters=layers[0]), lr=0.0)
    found = []
    for layer in layers:
        optimizer.rule = GradientNormalization(parameters=layer)
        optimizer.backward(network.losses())
        optimizer.step()
        found.append(optimizer.last_weights()["a"])
        (grad,) = torch.autograd.grad(network.losses()["a"], layer)
        torch.testing.assert_close(found[-1], 1 / grad.double().norm(), rtol=1e-5, atol=0)
    assert found[0] != found[1]


def test_a_rule_with_the_state_of_more_terms_is_refused() -> None:
    rule = GradNorm()
    rule(torch.eye(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    with pytest.raises(
        ValueError, match="the state of 3 terms, and there are 2; give each optimizer a rule of its own"
    ):
        rule(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))


# -- gradients ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"keep_combined_grad": True}, {"check_finite": True}])
def test_a_skipped_step_is_over_without_zero_grad(options: dict[str, Any], backend: str) -> None:
    network = Network()
    optimizer = BalancedAdam(network.parameters(), backend=backend, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000)
    before = [p.detach().clone() for p in network.parameters()]
    for step in range(3):
        network.zero_grad()  # the module's, which knows nothing of what waits
        with optimizer.term("a"):
            scaler.scale(network.losses()["a"]).backward()
            if step == 0:
                assert network.trunk.weight.grad is not None
                network.trunk.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer.scaled)
        scaler.update()
        assert same([p.detach() for p in network.parameters()], before) == (step == 0)
    assert scaler.get_scale() == 2.0**9


def test_gradients_in_the_same_memory(backend: str) -> None:
    """torch.autograd.grad gives the gradients of a sum one tensor."""
    p, q = (nn.Parameter(torch.zeros(3)) for _ in range(2))
    optimizer = MTAdam([p, q], backend=backend, keep_combined_grad=True)
    for _ in range(2):
        grads = torch.autograd.grad(((p + q) * torch.tensor([1.0, 2.0, 3.0])).sum(), [p, q])
        assert grads[0].data_ptr() == grads[1].data_ptr()
        with optimizer.term("a"):
            p.grad, q.grad = grads
    norm = optimizer.clip_grad_norm_(1.0)["a"]
    torch.testing.assert_close(float(norm), (2 * (4 + 16 + 36)) ** 0.5, rtol=1e-6, atol=0)
    optimizer.step()
    assert p.grad is not None
    torch.testing.assert_close(p.grad, torch.tensor([2.0, 4.0, 6.0]) / norm.float(), rtol=1e-5, atol=0)


def test_step_says_what_to_do() -> None:
    network = Network()
    optimizer = MTAdam(network.parameters())
    losses = network.losses()
    with pytest.raises(TypeError, match=r"closure is a list; give losses to backward\(\), then call step\(\)"):
        optimizer.step(list(losses.values()))  # type: ignore[arg-type]
    with optimizer.term("a"):
        losses["a"].backward()
        with pytest.raises(RuntimeError, match="term 'a' is being taken; leave its"):
            optimizer.step()


# -- inference mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [InitialLoss, lambda: DWA(1), SoftAdapt, ReLoBRaLo])
def test_a_weighting_that_inference_mode_has_seen_first_trains(make: Callable[[], Weighting]) -> None:
    network, weighting = Network(), make()
    with torch.inference_mode():
        weighting(network.losses())
    for _ in range(2):
        weighting(network.losses()).backward()


def test_reading_in_inference_mode_does_not_hinder_the_step(backend: str) -> None:
    network = Network()
    optimizer = BalancedAdam(network.parameters(), backend=backend)
    for _ in range(2):
        optimizer.backward(network.losses())
        optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        with torch.inference_mode():
            optimizer.running_norms()
