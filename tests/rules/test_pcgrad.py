"""PCGrad: its torch code and its kernel on the CPU, in the ways of tests/support/pcgrad.py."""

from array import array

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mtadam_fused.rules import PCGrad
from mtadam_fused.rules.kernels import kernel_for
from mtadam_fused.rules.pcgrad import splitmix64 as hash_tensor
from oracles.tolerances import TooFar
from tests.rules.gradients import UNKNOWN, conflicting, gram_of
from tests.support.pcgrad import check_against_torch, check_algorithm
from tests.support.rule_kernels import native_kernel, weighing_with


@pytest.mark.usefixtures("way")
def test_algorithm() -> None:
    check_algorithm()


@pytest.mark.usefixtures("way")
def test_projection_on_projected_gradients_is_rejected() -> None:
    """Also with two terms: the second meets the first when that is projected already."""
    with pytest.raises(TooFar):
        check_algorithm(against="projected", numbers=(2,))


def test_steps_in_turn() -> None:
    check_against_torch(native_kernel("pcgrad"))


@pytest.mark.parametrize(("member", "change"), [(1, 1), (2, 1), (5, 8)], ids=["seed", "mean", "step"])
def test_a_wrong_argument_is_seen(member: int, change: int) -> None:
    """Negative control: of another order, another reduction, or where another step is counted."""
    elsewhere = torch.zeros((), dtype=torch.int64)

    def wrong(args: array) -> None:
        args[member] = elsewhere.data_ptr() if member == 5 else args[member] ^ change
        kernel(args)

    kernel = native_kernel("pcgrad")
    with pytest.raises(AssertionError):
        check_against_torch(wrong)


class Operations(TorchDispatchMode):
    """Counts the operations that a GPU would need a launch for: all but views and empty tensors."""

    count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        returns = operation._schema.returns
        is_view = all(value.alias_info is not None and not value.alias_info.is_write for value in returns)
        self.count += not is_view and "empty" not in operation.name()
        return operation(*args, **kwargs or {})


def operations(rule: PCGrad, gram: Tensor) -> int:
    with Operations() as counted:
        rule(gram, UNKNOWN)
    return counted.count


def test_one_launch() -> None:
    gram, rule = gram_of(conflicting(4)), PCGrad(preference=[1.0, 2.0, 3.0, 4.0])
    rule.check_terms(range(4), allow_more=False)
    rule(gram, UNKNOWN)
    native_kernel("pcgrad")
    assert operations(rule, gram) == 0  # but the kernel
    with weighing_with(None):
        assert 50 < operations(rule, gram) < 80


def test_where_there_is_no_kernel() -> None:
    kernel = native_kernel("pcgrad")
    gram = torch.eye(64, dtype=torch.float64)
    assert kernel_for("pcgrad", gram) is kernel
    without = [gram.float(), gram.to("meta"), torch.eye(65, dtype=torch.float64), gram.clone().requires_grad_()]
    assert [kernel_for("pcgrad", other) for other in [*without, torch.nn.Parameter(gram, False)]] == [None] * 5
    assert kernel_for("no such rule", gram) is None
    gram = gram_of(conflicting(3))
    compiled = torch.compile(PCGrad(seed=0), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(gram, UNKNOWN), PCGrad(seed=0)(gram, UNKNOWN))


def test_dot_products_that_are_not_contiguous() -> None:
    gram = gram_of(conflicting(6))
    torch.testing.assert_close(
        PCGrad(seed=0)(gram[::2, ::2], UNKNOWN), PCGrad(seed=0)(gram[::2, ::2].contiguous(), UNKNOWN), rtol=0, atol=0
    )


def splitmix64(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) % 2**64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def test_mixed_is_splitmix64() -> None:
    numbers = [0, 1, 2**62, 2**63 - 1]
    assert [x % 2**64 for x in hash_tensor(torch.tensor(numbers)).tolist()] == [splitmix64(x) for x in numbers]
    assert splitmix64(0) == 0xE220A8397B1DCDAF  # as published


def test_orders() -> None:
    first, second = PCGrad(seed=1), PCGrad(seed=1)
    drawn = []
    for _ in range(200):
        orders = first.orders(4)
        assert torch.equal(orders, second.orders(4))
        assert torch.equal(orders.sort(dim=1).values, torch.arange(4).expand(4, 4))
        drawn.append(orders)
        first(torch.eye(4, dtype=torch.float64), UNKNOWN)
        second(torch.eye(4, dtype=torch.float64), UNKNOWN)
    mean = torch.stack(drawn).double().mean(dim=0)
    assert ((mean - 1.5).abs() < 0.4).all()  # every term comes early as often as late
    assert not torch.equal(PCGrad(seed=2).orders(8), PCGrad(seed=1).orders(8))
    torch.manual_seed(0)
    seed = PCGrad().seed
    torch.manual_seed(0)
    assert PCGrad().seed == seed != PCGrad().seed
