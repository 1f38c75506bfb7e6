"""The Recorder: what its rows hold, that nothing waits for them, and how they are read."""

import copy
import gc
import math
import pickle
import sys
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from mtadam_fused import CombinedAdam, MTAdam, Recorder, recorder
from mtadam_fused.rules import FixedWeights, Rule
from tests.support.recordings import MAKERS, NAMES, losses_of, make_network, recorded, step


def as_numbers(found: dict[Any, Any]) -> dict[Any, Any]:
    """Return what an optimizer tells, with numbers in the place of tensors, by name or by position."""

    def of_params(values: Any) -> Any:
        if isinstance(values, dict):
            return {name: value.item() for name, value in values.items()}
        return values.item() if values.dim() == 0 else dict(enumerate(values.tolist()))

    return {key: of_params(values) for key, values in found.items()}


def told(optimizer: Any) -> dict[str, Any]:
    """Return what a row of the optimizer's last step should hold."""
    if isinstance(optimizer, CombinedAdam):
        return {"weight": as_numbers(optimizer.last_weights()), "cosine": as_numbers(optimizer.term_cosines())}
    return {"scale": as_numbers(optimizer.term_scales()), "running_norm": as_numbers(optimizer.running_norms())}


# -- rows --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_names", [True, False])
@pytest.mark.parametrize("name", MAKERS)
def test_rows_are_what_the_optimizer_tells_at_their_steps(name: str, with_names: bool) -> None:
    network = make_network()
    optimizer = MAKERS[name](network.named_parameters() if with_names else network.parameters())
    seen = Recorder(optimizer, every=2)
    expected = []
    for number in range(1, 6):
        step(optimizer, losses_of(network))
        expected.append({"step": number, **told(optimizer)})
    assert seen.rows() == expected[::2]
    assert seen.rows() != expected[1::2]
    assert len(seen) == 3
    quantity = "cosine" if name == "CombinedAdam" else "scale"
    (labels, *_) = seen.rows()[0][quantity].values()
    assert list(labels) == (NAMES if with_names else [0, 1, 2, 3])


class Growing(Rule):
    """Weights that are the rule's own memory, changed in place."""

    needs_gram = False

    def __init__(self) -> None:
        super().__init__()
        self.weights = torch.zeros(2, dtype=torch.float64)

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        return self.weights.add_(1.0)


def test_the_weights_of_a_rule_that_changes_them_in_place() -> None:
    network = make_network()
    optimizer = CombinedAdam(network.parameters(), Growing())
    seen = Recorder(optimizer, every=1)
    for _ in range(3):
        step(optimizer, losses_of(network))
    assert [row["weight"] for row in seen.rows()] == [{"a": n, "b": n} for n in (1.0, 2.0, 3.0)]


def test_rows_have_the_terms_and_parameters_of_their_steps() -> None:
    network, other = make_network(), nn.Linear(2, 1)
    optimizer = MTAdam(network.named_parameters())
    seen = Recorder(optimizer, every=1)
    step(optimizer, losses_of(network))
    step(optimizer, losses_of(network, "c"))
    optimizer.add_param_group({"params": [(f"other.{name}", p) for name, p in other.named_parameters()]})
    step(optimizer, {"d": other(torch.randn(3, 2)).sum()})
    first, second, third = (row["scale"] for row in seen.rows())
    assert (list(first), list(second), list(third)) == (["a", "b"], ["a", "b", "c"], ["a", "b", "c", "d"])
    assert (list(first["a"]), list(third["a"])) == (NAMES, [*NAMES, "other.weight", "other.bias"])
    assert math.isnan(third["a"]["other.bias"])
    assert math.isnan(third["d"]["0.bias"])
    assert third["d"]["other.bias"] == 1.0


def test_the_oldest_rows_go_and_steps_can_be_counted_from_another_number() -> None:
    network = make_network()
    optimizer = MTAdam(network.parameters())
    seen = Recorder(optimizer, every=1, max_rows=2)
    for _ in range(3):
        step(optimizer, losses_of(network))
    seen.step = 100
    step(optimizer, losses_of(network))
    assert [row["step"] for row in seen.rows()] == [3, 101]
    assert len(seen) == 2


def test_loading_a_checkpoint_in_between() -> None:
    network = make_network()
    optimizer = MTAdam(network.named_parameters())
    seen = Recorder(optimizer, every=1)
    step(optimizer, losses_of(network))
    saved = copy.deepcopy(optimizer.state_dict())
    step(optimizer, losses_of(network))
    optimizer.load_state_dict(saved)
    step(optimizer, losses_of(network))
    assert seen.rows()[2] == {"step": 3, **told(optimizer)}
    assert seen.rows()[1]["running_norm"] != seen.rows()[2]["running_norm"]


def test_steps_without_any_term_have_no_row() -> None:
    optimizer = MTAdam(make_network().parameters())
    seen = Recorder(optimizer)
    optimizer.step()
    assert (len(seen), seen.step) == (0, 0)
    fixed = CombinedAdam(make_network().parameters(), FixedWeights(), terms=("a", "b"))
    seen = Recorder(fixed)
    fixed.step()
    assert seen.rows()[0]["weight"] == {}


# -- nothing waits -----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:mtadam_fused runs its slow")
@pytest.mark.parametrize("name", MAKERS)
def test_a_row_reads_nothing(name: str) -> None:
    """On the meta device tensors have no values, and reading one is an error."""
    network = make_network().to("meta")
    optimizer = MAKERS[name](network.named_parameters())
    seen = Recorder(optimizer, every=1)
    for more in ((), ("c",)):
        out = network(torch.empty(5, 3, device="meta"))
        step(optimizer, {"a": out.square().mean(), "b": out.abs().mean()} | {name: out.sum() for name in more})
    assert len(seen) == 2
    with pytest.raises(NotImplementedError, match="meta"):
        seen.rows()


def test_captured_steps_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    network = make_network()
    optimizer = MTAdam(network.parameters())
    seen = Recorder(optimizer, every=1)
    for is_capturing in (False, True, False):
        monkeypatch.setattr(recorder, "is_capturing", lambda _, on=is_capturing: on)
        step(optimizer, losses_of(network))
    assert [row["step"] for row in seen.rows()] == [1, 2]


@pytest.mark.parametrize("name", MAKERS)
def test_steps_in_compiled_functions(name: str) -> None:
    network = make_network()
    optimizer = MAKERS[name](network.named_parameters())
    seen, counter = Recorder(optimizer, every=1), CompileCounter()

    @torch.compile(backend=counter)
    def train(x: Tensor) -> None:
        out = network(x)
        optimizer.backward({"a": out.square().mean(), "b": out.abs().mean()})
        optimizer.step()

    torch.compiler.reset()
    for _ in range(3):
        train(torch.randn(5, 3))
    assert 1 <= counter.op_count <= 7  # the network's and the losses', none of the recorder's
    assert [row["step"] for row in seen.rows()] == [1, 2, 3]
    assert seen.rows()[-1] == {"step": 3, **told(optimizer)}


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_closed_recorder_keeps_its_rows() -> None:
    network = make_network()
    optimizer = MTAdam(network.parameters())
    with Recorder(optimizer, every=1) as seen:
        step(optimizer, losses_of(network))
    step(optimizer, losses_of(network))
    assert [row["step"] for row in seen.rows()] == [1]
    assert not optimizer._optimizer_step_post_hooks
    seen.close()


def test_neither_keeps_the_other() -> None:
    network = make_network()
    optimizer = MTAdam(network.parameters())
    seen = Recorder(optimizer, every=1)
    step(optimizer, losses_of(network))
    unused = weakref.ref(Recorder(optimizer, every=1))
    gc.collect()
    assert unused() is None
    assert len(optimizer._optimizer_step_post_hooks) == 1
    gone = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert gone() is None
    assert len(seen.rows()) == 1
    seen.close()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))])
def test_copies_record_nothing(duplicate: Callable[[Any], Any]) -> None:
    network = make_network()
    optimizer = MTAdam(network.parameters())
    seen = Recorder(optimizer, every=1)
    step(optimizer, losses_of(network))
    other, same = duplicate(optimizer), duplicate(seen)
    for p in other.param_groups[0]["params"]:
        with other.term("a"):
            p.grad = torch.ones_like(p)
    other.step()
    step(optimizer, losses_of(network))
    assert (len(seen), len(same)) == (2, 1)
    assert same.rows() == seen.rows()[:1]
    same.close()
    assert optimizer._optimizer_step_post_hooks


# -- pandas and TensorBoard --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAKERS)
def test_to_pandas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas = SimpleNamespace(DataFrame=lambda data, columns: (data, columns))
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    seen = recorded(name)
    lines, columns = seen.to_pandas()
    assert columns == ["step", "quantity", "term", "other", "parameter", "value"]
    rows = seen.rows()
    if name == "CombinedAdam":
        assert (3, "cosine", "a", "c", "0.bias", rows[2]["cosine"]["a", "c"]["0.bias"]) in lines
        assert (2, "weight", "b", None, None, rows[1]["weight"]["b"]) in lines
        assert len(lines) == 2 + 3 + 3 + 4 * (1 + 3 + 3)
    else:
        assert (3, "scale", "c", None, "2.bias", rows[2]["scale"]["c"]["2.bias"]) in lines
        assert len(lines) == 4 * 2 * (2 + 3 + 3)


@pytest.mark.parametrize(("package", "read"), [("pandas", Recorder.to_pandas), ("matplotlib", Recorder.plot)])
def test_without_the_package_an_error_names_the_remedy(
    package: str, read: Callable[[Recorder], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"needs {package}, .*: pip install {package}"):
        read(recorded("MTAdam"))


class Writer:
    """Keep what a SummaryWriter is given."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, int], float] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert (tag, step) not in self.found
        self.found[tag, step] = value


def test_write() -> None:
    writer, network = Writer(), make_network()
    optimizer = MTAdam(network.named_parameters())
    seen = Recorder(optimizer, every=1)
    step(optimizer, losses_of(network))
    seen.write(writer)
    seen.write(writer)
    assert len(writer.found) == 2 * 2 * 4
    step(optimizer, {"c": network[0].get_parameter("bias").sum()})
    seen.write(writer)
    assert writer.found["scale/a/0.weight", 1] == seen.rows()[0]["scale"]["a"]["0.weight"]
    assert writer.found["running_norm/c/0.bias", 2] == seen.rows()[1]["running_norm"]["c"]["0.bias"]
    assert ("scale/c/2.bias", 2) not in writer.found  # NaN
    assert all(map(math.isfinite, writer.found.values()))
    combined = Writer()
    recorded("CombinedAdam").write(combined)
    assert {("weight/b", 1), ("cosine/a, c/2.weight", 3)} < set(combined.found)


def test_errors() -> None:
    network = make_network()
    with pytest.raises(TypeError, match="optimizer is a Adam; it must be an MTAdam"):
        Recorder(torch.optim.Adam(network.parameters()))  # type: ignore[arg-type]
    optimizer = MTAdam(network.parameters())
    with pytest.raises(ValueError, match="every is 0; it must be at least 1"):
        Recorder(optimizer, every=0)
    with pytest.raises(ValueError, match="max_rows is -1; it must be at least 1"):
        Recorder(optimizer, max_rows=-1)
    assert not optimizer._optimizer_step_post_hooks
    with pytest.raises(ValueError, match="no rows yet"):
        Recorder(optimizer).plot()
    wrong: list[dict[str, str]] = [{"quantity": "cosine"}, {"over": "layers"}]
    for options in wrong:
        with pytest.raises(ValueError, match=r"is not possible; quantities are \['scale', 'running_norm'\]"):
            recorded("MTAdam").plot(**options)
