"""The pictures of a Recorder show its numbers."""

import math
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from matplotlib import pyplot
from matplotlib.figure import Figure

from mtadam_fused import MTAdam, Recorder, plots
from tests.support.recordings import NAMES, losses_of, make_network, recorded, step

CASES = [("MTAdam", "scale"), ("BalancedAdam", "running_norm"), ("CombinedAdam", "cosine"), ("CombinedAdam", "weight")]


@pytest.mark.parametrize(("name", "quantity"), CASES[:3])
def test_a_heat_map(name: str, quantity: str, tmp_path: Path) -> None:
    seen, figure = recorded(name), Figure()
    axes = seen.plot(quantity, axes=figure.subplots())
    figure.savefig(tmp_path / "picture.png")
    values = seen.rows()[-1][quantity]
    (image,) = axes.images
    for row, name in enumerate(NAMES):
        expected = [of_params[name] for of_params in values.values()]
        assert image.get_array()[row].tolist() == pytest.approx(expected)
        assert axes.texts[3 * row].get_text() == f"{expected[0]:.2g}"
    assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
    columns = ["a, b", "a, c", "b, c"] if quantity == "cosine" else ["a", "b", "c"]
    assert [label.get_text() for label in axes.get_xticklabels()] == columns


@pytest.mark.parametrize(("name", "quantity"), CASES)
def test_curves_over_the_steps(name: str, quantity: str, tmp_path: Path) -> None:
    seen, figure = recorded(name), Figure()
    axes = seen.plot(quantity, over="steps", axes=figure.subplots())
    figure.savefig(tmp_path / "picture.png")
    values = seen.rows()[-1][quantity].values()
    for line, of_params in zip(axes.lines, values, strict=True):
        found = sorted(of_params.values()) if isinstance(of_params, dict) else [of_params] * 4
        assert list(line.get_xdata()) == [1, 2, 3]
        assert line.get_ydata()[-1] == pytest.approx((found[1] + found[2]) / 2)  # the median
    assert math.isnan(axes.lines[2].get_ydata()[0])  # a term that came later
    assert axes.lines[0].get_label() == ("a, b" if quantity == "cosine" else "a")
    assert axes.get_yscale() == ("linear" if quantity in ("cosine", "weight") else "log")


def test_default_pictures() -> None:
    pyplot.switch_backend("agg")
    for name, title in (("MTAdam", plots.TITLES["scale"]), ("CombinedAdam", plots.TITLES["cosine"])):
        assert recorded(name).plot().get_title() == f"{title}, step 3"
    pyplot.close("all")


def test_cells_without_values_are_empty() -> None:
    network = make_network()
    optimizer = MTAdam(network.named_parameters(), term_weights={"a": 1.0, "b": 0.0})
    seen = Recorder(optimizer, every=1)
    step(optimizer, {"a": losses_of(network)["a"], "b": network[0].get_parameter("bias").square().sum()})
    axes = seen.plot(axes=Figure().subplots())
    assert axes.images[0].get_array().mask.tolist() == [[False, True]] * 4  # NaN, or 0 on a logarithmic scale
    assert len(axes.texts) == 4
    axes.figure.canvas.draw()
