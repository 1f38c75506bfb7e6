"""Calls that are easy to get wrong: an error with the remedy, or one warning."""

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mtadam_fused import BalancedAdam, CombinedAdam, MTAdam
from mtadam_fused.rules import FixedWeights, UPGrad
from oracles.tolerances import same

MAKERS: dict[str, Any] = {
    "MTAdam": MTAdam,
    "BalancedAdam": BalancedAdam,
    "CombinedAdam": lambda params, **options: CombinedAdam(params, UPGrad(), **options),
}


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Any:
    return MAKERS[request.param]


def warnings_of(call: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    assert all(warning.filename == __file__ for warning in caught)  # they point here, not into the package
    return [str(warning.message) for warning in caught]


# -- loss.backward() ---------------------------------------------------------------------------------------------------


def test_loss_backward_instead_of_optimizer_backward(make: Any) -> None:
    model = nn.Linear(2, 1)
    optimizer = make(model.named_parameters())
    model(torch.ones(2)).sum().backward()
    with pytest.raises(
        RuntimeError,
        match=r"parameter 0 \(weight\) has .*Call optimizer.backward\({...}\) instead of loss.backward\(\)",
    ):
        optimizer.step()


def test_parameters_without_names_are_named_by_position() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = MTAdam([p])
    p.sum().backward()
    with pytest.raises(RuntimeError, match=r"parameter 0 has a gradient in .grad that belongs to no term"):
        optimizer.step()


def test_gradients_made_between_backward_and_step_are_ignored_with_one_warning(make: Any) -> None:
    def run(stray: bool) -> tuple[list[str], Tensor]:
        p = nn.Parameter(torch.ones(2))
        optimizer = make([p], lr=0.1)
        messages = []
        for _ in range(3):
            optimizer.zero_grad()
            optimizer.backward({"a": p.square().sum()})
            if stray:
                (7 * p).sum().backward()
            messages += warnings_of(lambda: optimizer.step())
        return messages, p.detach()

    (message,), strayed = run(stray=True)
    assert message.startswith("step() ignores gradients in p.grad")
    messages, plain = run(stray=False)
    assert not messages
    assert torch.equal(strayed, plain)


def test_a_combined_gradient_that_a_step_has_left_is_no_stray_one() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = MTAdam([p], keep_combined_grad=True)
    for _ in range(3):
        optimizer.backward({"a": p.square().sum()})
        assert not warnings_of(lambda: optimizer.step())


def test_stray_gradients_of_few_parameters_in_a_large_model_are_found_soon() -> None:
    params: list[Tensor] = [nn.Parameter(torch.ones(1)) for _ in range(80)]
    optimizer = MTAdam(params)
    messages = []
    for _ in range(10):
        optimizer.zero_grad()
        optimizer.backward({"a": torch.cat(params).sum()})
        params[33].sum().backward()
        messages += warnings_of(lambda: optimizer.step())
    assert len(messages) == 1


# -- terms -------------------------------------------------------------------------------------------------------------


def test_a_new_term_after_the_tenth_step_warns_once(make: Any) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = make([p])
    for name in ("a", "b"):  # that terms come later in the beginning is usual
        assert not warnings_of(lambda name=name: optimizer.backward({name: p.square().sum()}))
        optimizer.step()
    for _ in range(8):
        optimizer.backward({"a": p.square().sum()})
        optimizer.step()
    (message,) = warnings_of(lambda: optimizer.backward({"A": p.square().sum()}))
    assert message.startswith("'A' is a new term, and the terms so far are ['a', 'b']")
    assert not warnings_of(lambda: optimizer.backward({"C": p.square().sum()}))
    assert optimizer.terms == ("a", "b", "A", "C")


def test_a_new_term_after_loading_warns() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer, loaded = MTAdam([p]), MTAdam([p])
    optimizer.backward({"a": p.sum()})
    optimizer.step()
    loaded.load_state_dict(optimizer.state_dict())
    assert len(warnings_of(lambda: loaded.backward({"b": p.sum()}))) == 1


def test_terms_fix_names_and_order(make: Any) -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = make([p], terms=("residual", "boundary"))
    assert optimizer.terms == ("residual", "boundary")
    message = "unknown term 'boundry': the optimizer was made with terms=.*; did you mean 'boundary'?"
    with pytest.raises(ValueError, match=message):
        optimizer.backward({"boundry": p.sum()})
    with pytest.raises(ValueError, match=r"unknown term 'x': .*; use one of these names"), optimizer.term("x"):
        pass
    optimizer.backward({"boundary": p.sum()})  # first, and yet the second
    optimizer.step()
    with optimizer.term(0):
        p.square().sum().backward()
    optimizer.step()
    optimizer.backward([p.sum(), p.square().sum()])  # in the order of the terms
    optimizer.step()
    assert optimizer.terms == ("residual", "boundary")
    assert "terms" in optimizer.state_dict()["param_groups"][0]


def test_the_order_of_fixed_terms_says_which_is_the_first() -> None:
    """MTAdam's anchor is the first term, not the first one seen."""

    def run(terms: tuple[str, ...] | None, order: tuple[str, str]) -> Tensor:
        p = nn.Parameter(torch.arange(1.0, 4.0).double())
        optimizer = MTAdam([p], lr=0.1, terms=terms)
        losses = {"a": lambda: p.square().sum(), "b": lambda: 100 * p.sin().sum()}
        for _ in range(3):
            optimizer.backward({name: losses[name]() for name in order})
            optimizer.step()
        return p.detach()

    expected = run(None, ("a", "b"))
    assert torch.equal(run(("a", "b"), ("b", "a")), expected)
    assert not same([run(None, ("b", "a"))], [expected])


@pytest.mark.parametrize(
    ("terms", "error", "message"),
    [
        ("ab", TypeError, "terms is 'ab'; it must be a list of names"),
        (("a", "a"), ValueError, r"terms is \['a', 'a'\]; each name may stand there once"),
        ((("a", 1),), TypeError, "term .* is a tuple"),
        (3, TypeError, "terms is 3"),
        (0, TypeError, "terms is 0"),
        ((), ValueError, "terms is empty; name all loss terms, or leave it out"),
    ],
)
def test_bad_terms(make: Any, terms: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make([nn.Parameter(torch.ones(2))], terms=terms)


def test_term_weights_and_anchors_are_checked_against_the_terms_at_once() -> None:
    p = nn.Parameter(torch.ones(2))
    with pytest.raises(ValueError, match="unknown term 'b': term_weights names"):
        MTAdam([p], terms=("a", "b"), term_weights={"a": 1.0})
    with pytest.raises(ValueError, match="anchor is 'c', and the terms are"):
        MTAdam([p], terms=("a", "b"), anchor="c")
    with pytest.raises(ValueError, match="unknown term 'b': weights names"):
        CombinedAdam([p], FixedWeights({"a": 1.0}), terms=("a", "b"))


def test_a_checkpoint_with_other_terms_is_refused(make: Any) -> None:
    p = nn.Parameter(torch.ones(2))
    saved = make([p])
    saved.backward({"a": p.sum(), "b": p.sum()})
    saved.step()
    state = saved.state_dict()
    with pytest.raises(ValueError, match=r"the saved terms are \['a', 'b'\], and the optimizer was made with terms="):
        make([p], terms=("b", "a")).load_state_dict(state)
    for terms in (("a", "b"), ("a", "b", "c")):
        optimizer = make([p], terms=terms)
        optimizer.load_state_dict(state)
        assert optimizer.terms == terms
        optimizer.backward({terms[-1]: p.sum()})
        optimizer.step()


# -- backward() returns the sum ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_backward_returns_the_sum_of_the_losses(make: Any, dtype: torch.dtype) -> None:
    p = nn.Parameter(torch.ones(2, dtype=dtype))
    optimizer = make([p])
    losses = {"a": p.sum() + 1, "b": (p.sum() / 256).reshape(1), "c": 0 * p.sum()}
    total = optimizer.backward(losses)
    assert total.shape == ()
    assert total.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert not total.requires_grad
    assert total.item() == 3 + 2 / 256  # which bfloat16 would round to 3
    optimizer.step()
    assert total.item() == 3 + 2 / 256


def test_one_pass_returns_the_sum_without_weights() -> None:
    p = nn.Parameter(torch.ones(2))
    optimizer = CombinedAdam([p], FixedWeights([10.0, 1.0]))
    assert optimizer.takes_one_pass
    assert optimizer.backward([p.sum(), 2 * p.sum()]).item() == 6
