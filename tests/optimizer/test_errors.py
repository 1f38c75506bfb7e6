"""Bad input: an error that names the argument, the value and the remedy; and nothing has changed."""

import copy
import math

import pytest
import torch
from torch import nn

from mtadam_fused import BalancedAdam, MTAdam
from mtadam_fused.gradients.collector import check_gradient


def snapshot(optimizer: MTAdam) -> dict:
    state = copy.deepcopy(optimizer.state_dict())
    return {"state": state, "params": [p.detach().clone() for g in optimizer.param_groups for p in g["params"]]}


def assert_unchanged(optimizer: MTAdam, before: dict) -> None:
    after = snapshot(optimizer)
    torch.testing.assert_close(after["params"], before["params"], rtol=0, atol=0)
    torch.testing.assert_close(after["state"]["state"], before["state"]["state"], rtol=0, atol=0, equal_nan=True)
    assert after["state"]["param_groups"] == before["state"]["param_groups"]


@pytest.fixture
def trained(backend: str) -> tuple[MTAdam, nn.Parameter]:
    """Return an optimizer that has made a step with the terms a and b, and its parameter."""
    p = nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p], backend=backend)
    optimizer.backward({"a": p.sum(), "b": p.square().sum()})
    optimizer.step()
    return optimizer, p


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"lr": "0.1"}, "lr is '0.1'"),
        ({"lr": torch.tensor([0.1, 0.2])}, "lr is a Tensor of shape"),
        ({"lr": torch.tensor(-0.5)}, "lr is -0.5"),
        ({"betas": (0.9, 0.999)}, "betas is"),
        ({"betas": (0.9, 0.999, 1.0)}, "betas is"),
        ({"betas": (-0.1, 0.999, 0.9)}, "betas is"),
        ({"betas": 0.9}, "betas is"),
        ({"eps": -1e-8}, "eps is -1e-08"),
        ({"weight_decay": math.inf}, "weight_decay is inf"),
        ({"norm_init": "zero"}, "norm_init is 'zero'"),
        ({"term_weights": 3.0}, "term_weights is 3.0"),
        ({"term_weights": [1.0, "x"]}, r"term_weights\[1\] is 'x'"),
        ({"term_weights": {"a": math.nan}}, r"term_weights\['a'\] is nan"),
        ({"term_weights": {"a": 1.0, "b": -0.5}}, r"term_weights\['b'\] is -0.5; it must be at least 0.*maximize=True"),
        ({"term_weights": [-1.0]}, r"term_weights\[0\] is -1.0; it must be at least 0"),
        ({"betas": (torch.tensor(0.9), 0.999, torch.tensor(1.5))}, r"betas is \(0.8999.*, 0.999, 1.5\)"),
        ({"betas": (torch.tensor([0.9, 0.9]), 0.999, 0.9)}, r"betas\[0\] is a Tensor of shape \(2,\)"),
        ({"betas": (0.9, torch.tensor(0.9, device="meta"), 0.9)}, r"betas\[1\] is a Tensor on meta; .* use a number"),
        ({"backend": "tpu"}, "backend is 'tpu'"),
    ],
)
def test_hyperparameters(options: dict, message: str) -> None:
    for make in (MTAdam, BalancedAdam):
        with pytest.raises(ValueError, match=message):
            make([nn.Parameter(torch.ones(2))], **options)


def test_negative_term_weights_set_later_refuse_the_step(trained) -> None:
    optimizer, p = trained
    optimizer.param_groups[0]["term_weights"] = {"a": 1.0, "b": -1.0}
    optimizer.backward({"a": p.sum(), "b": p.square().sum()})
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=r"term_weights\['b'\] is -1.0"):
        optimizer.step()
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("name", ["lr", "term_weights", "betas", "eps"])
def test_hyperparameters_that_change_between_steps(name: str, backend: str) -> None:
    """Values in a group are validated again when they change, in place too."""
    p = nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p], lr=torch.tensor(0.1), term_weights={"a": 1.0}, backend=backend)
    (group,) = optimizer.param_groups
    for _ in range(2):
        optimizer.backward({"a": p.sum()})
        optimizer.step()
    before = snapshot(optimizer)
    optimizer.backward({"a": p.sum()})
    if name == "lr":
        group["lr"].fill_(-1.0)
    elif name == "term_weights":
        group["term_weights"]["a"] = math.nan
    else:
        group[name] = (2.0, 0.9, 0.9) if name == "betas" else -1.0
    with pytest.raises(ValueError, match=f"{name}.* is .*must be"):
        optimizer.step()
    group.update(lr=torch.tensor(0.1), term_weights={"a": 1.0}, betas=(0.9, 0.999, 0.9), eps=1e-8)
    optimizer.zero_grad()
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize("bad", [{"lr": -1.0}, {"betas": (2.0, 0.9, 0.9)}, {"term_weights": [1.0]}])
def test_bad_group(trained, bad: dict) -> None:
    optimizer, _ = trained
    before = snapshot(optimizer)
    if "term_weights" in bad:  # one weight for two terms shows only with the terms
        optimizer.param_groups[0].update(bad)
        with pytest.raises(ValueError, match="term_weights has 1 weights for 2 terms"):
            optimizer.backward({"a": optimizer.param_groups[0]["params"][0].sum()})
        optimizer.param_groups[0]["term_weights"] = None
    else:
        with pytest.raises(ValueError, match="must be"):
            optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **bad})
    assert_unchanged(optimizer, before)


@pytest.mark.parametrize(
    "option", [{"backend": "reference"}, {"second_moments": "shared"}, {"check_finite": True}, {"process_group": None}]
)
def test_an_option_of_the_whole_optimizer_in_a_group(trained, option: dict) -> None:
    optimizer, _ = trained
    before = snapshot(optimizer)
    with pytest.raises(ValueError, match=f"the parameter group has {next(iter(option))}, which no group can override"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], **option})
    assert_unchanged(optimizer, before)


def test_bad_group_value_set_later_refuses_the_step(trained) -> None:
    optimizer, p = trained
    optimizer.backward({"a": p.sum()})
    before = snapshot(optimizer)
    optimizer.param_groups[0]["eps"] = -1.0
    with pytest.raises(ValueError, match="eps is -1"):
        optimizer.step()
    optimizer.param_groups[0]["eps"] = 1e-8
    assert_unchanged(optimizer, before)
    optimizer.step()  # the gradients are still there
    assert not torch.equal(before["params"][0], p)


def bad_losses(p: nn.Parameter) -> list:
    return [
        ({}, ValueError, "losses is empty"),
        ([], ValueError, "losses"),
        (p.sum(), TypeError, "losses is a Tensor"),
        ({"a": 1.0}, TypeError, "loss 'a' is a float"),
        ({"a": p}, ValueError, r"loss 'a' has shape \(3,\)"),
        ({"a": p.sum().detach()}, ValueError, "loss 'a' has no graph"),
        ({"a": p.sum(), "b": p.sum() * math.nan}, ValueError, "loss 'b' is nan"),
        ({"a": p.sum() * math.inf}, ValueError, "loss 'a' is inf"),
        ({"a": torch.view_as_complex(torch.stack([p, p], dim=-1)).sum()}, ValueError, "loss 'a' is torch.complex64"),
        ([p.sum()], ValueError, "losses has 1 losses, but there are 2 terms"),
        ([p.sum()] * 3, ValueError, "losses has 3 losses, but there are 2 terms"),
        ({("a", 1): p.sum()}, TypeError, "term .* is a tuple"),
    ]


@pytest.mark.parametrize("case", range(12))
def test_losses(trained, case: int) -> None:
    optimizer, p = trained
    losses, error, message = bad_losses(p)[case]
    before = snapshot(optimizer)
    with pytest.raises(error, match=message):
        optimizer.backward(losses)
    assert p.grad is None
    assert not optimizer._collector
    assert_unchanged(optimizer, before)


def test_bad_losses_keep_what_waits(trained) -> None:
    optimizer, p = trained
    optimizer.backward({"a": p.sum()})
    with pytest.raises(ValueError, match="no graph"):
        optimizer.backward({"a": p.sum(), "b": p.sum().detach()})
    before = p.detach().clone()
    optimizer.step()
    assert not torch.equal(before, p)


def test_failing_autograd_drops_what_waits(trained) -> None:
    optimizer, p = trained
    used = p.square().sum()
    used.backward()
    p.grad = None
    before = snapshot(optimizer)
    with pytest.raises(RuntimeError, match="second time"):
        optimizer.backward({"a": p.sum(), "new": used})
    assert p.grad is None
    optimizer.step()
    assert_unchanged(optimizer, before)


def test_unknown_terms(trained) -> None:
    optimizer, p = trained
    with (
        pytest.raises(ValueError, match=r"unknown term 2: the terms so far are \['a', 'b'\]; new terms need names"),
        optimizer.term(2),
    ):
        pass
    fresh = MTAdam([p])
    with pytest.raises(ValueError, match=r"unknown term 1: .* the next new position is 0"), fresh.term(1):
        pass
    weighted = MTAdam([p], term_weights={"a": 1.0, "bb": 2.0})
    with pytest.raises(ValueError, match="unknown term 'b': term_weights names"):
        weighted.backward({"a": p.sum(), "b": p.sum()})


def test_wrong_number_of_term_weights(backend: str) -> None:
    p = nn.Parameter(torch.ones(3))
    optimizer = MTAdam([p], term_weights=[1.0, 2.0, 3.0], backend=backend)
    with pytest.raises(ValueError, match="term_weights has 3 weights for 2 terms"):
        optimizer.backward([p.sum(), p.sum()])
    with optimizer.term(0):
        p.sum().backward()
    with pytest.raises(ValueError, match="term_weights has 3 weights for 1 terms"):
        optimizer.step()
    assert p.eq(1).all()


def test_gradient_of_no_term(trained) -> None:
    optimizer, p = trained
    p.sum().backward()
    for call in (optimizer.step, lambda: optimizer.backward([p.sum(), p.sum()]), optimizer.term("a").__enter__):
        with pytest.raises(RuntimeError, match=r"parameter 0 has a gradient in .grad that belongs to no term"):
            call()
    assert p.grad is not None
    optimizer.zero_grad()
    optimizer.backward([p.sum(), p.sum()])


def test_term_inside_term(trained) -> None:
    optimizer, p = trained
    with optimizer.term("a"):
        p.sum().backward()
        with pytest.raises(RuntimeError, match="term 'a' is being taken"), optimizer.term("b"):
            pass
        with pytest.raises(RuntimeError, match="term 'a' is being taken"):
            optimizer.backward({"b": p.sum()})
    before = p.detach().clone()
    optimizer.step()
    assert not torch.equal(before, p)


def test_failing_body_of_a_term_drops_its_gradients_only(trained) -> None:
    optimizer, p = trained
    optimizer.backward({"a": 2 * p.sum()})

    def fail() -> None:
        with optimizer.term("b"):
            p.square().sum().backward()
            raise KeyError("the engine failed")

    with pytest.raises(KeyError, match="the engine failed"):
        fail()
    assert p.grad is None
    norms = optimizer.running_norms()
    optimizer.step()
    assert torch.equal(optimizer.running_norms()["b"], norms["b"])
    assert not torch.equal(optimizer.running_norms()["a"], norms["a"])


def test_gradients_that_no_step_can_use(trained) -> None:
    optimizer, p = trained
    before = snapshot(optimizer)
    embedding = nn.Embedding(5, 2, sparse=True)
    sparse = MTAdam(embedding.parameters())
    with pytest.raises(RuntimeError, match=r"the gradient of term 'x' for parameter 0 is torch.sparse_coo"):
        sparse.backward({"x": embedding(torch.tensor([1])).sum()})
    for change, message in (
        (lambda: setattr(p.grad, "data", torch.ones(5)), r"shape \(5,\), the parameter \(3,\)"),
        (lambda: setattr(p.grad, "data", torch.ones(3, dtype=torch.complex64)), "is torch.complex64"),
    ):

        def capture(change=change) -> None:
            with optimizer.term("a"):
                p.sum().backward()
                change()

        with pytest.raises(RuntimeError, match=message):
            capture()
        assert p.grad is None
        assert_unchanged(optimizer, before)


def test_gradient_on_another_device() -> None:
    with pytest.raises(RuntimeError, match="term 'a' for parameter 7 is on meta, the parameter on cpu"):
        check_gradient(torch.ones(3, device="meta"), torch.ones(3), 7, "a")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.float8_e4m3fn])
def test_parameters_that_no_kernel_updates(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=r"params\[0\] is torch\.\w+, .* it must be dense and one of"):
        MTAdam([torch.zeros(2, dtype=dtype, requires_grad=True)])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_check_finite_refuses_the_whole_step(bad: float, backend: str) -> None:
    p, q = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2))
    optimizer = MTAdam([p, q], check_finite=True, backend=backend)
    optimizer.backward({"a": (p.sum() + q.sum())})
    optimizer.step()
    before = snapshot(optimizer)
    with optimizer.term("a"):
        p.grad, q.grad = torch.ones(3), torch.tensor([1.0, bad])
    with pytest.raises(RuntimeError, match="the gradient of term 'a' for parameter 1 is not finite"):
        optimizer.step()
    assert_unchanged(optimizer, before)
    optimizer.zero_grad()
    optimizer.backward({"a": (p.sum() + q.sum())})
    optimizer.step()
    assert p.isfinite().all()


def test_step_without_gradients_is_no_step(trained) -> None:
    optimizer, _ = trained
    before = snapshot(optimizer)
    optimizer.step()
    assert_unchanged(optimizer, before)
