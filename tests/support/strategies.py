"""Random cases, for Hypothesis."""

from hypothesis import strategies as st

from oracles.numpy_oracle import CHOICES
from tests.support.cases import DTYPES, LAYOUTS, SHAPES, Case

options = st.fixed_dictionaries(
    {},
    optional={
        "lr": st.sampled_from([1e-3, 0.1]),
        "betas": st.sampled_from([(0.9, 0.999, 0.9), (0.5, 0.9, 0.0), (0.0, 0.0, 0.99)]),
        "eps": st.sampled_from([1e-8, 1e-3]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "amsgrad": st.booleans(),
        "maximize": st.booleans(),
        "decoupled_weight_decay": st.booleans(),
        "norm_init": st.sampled_from(["first_step", "first_nonzero"]),
        "norms": st.sampled_from(CHOICES["norms"]),
        "second_moments": st.sampled_from(CHOICES["second_moments"]),
    },
)


@st.composite
def cases(draw: st.DrawFn, device: str = "cpu") -> Case:
    """Any case, small enough to run in milliseconds."""
    shapes = draw(st.lists(st.sampled_from(SHAPES), min_size=1, max_size=4))
    layout = st.lists(st.sampled_from(LAYOUTS), min_size=len(shapes), max_size=len(shapes)).map(tuple)
    terms = draw(st.sampled_from([1, 2, 3, 4, 7, 16]))
    anchor = draw(st.sampled_from(["first", "none", "geometric_mean"]) | st.integers(0, terms - 1))
    return Case(
        dtype=draw(st.sampled_from(DTYPES)),
        shapes=tuple(shapes),
        layouts=draw(layout),
        grad_layouts=draw(layout),
        terms=terms,
        seed=draw(st.integers(0, 2**32 - 1)),
        absent=draw(st.sampled_from([0.0, 0.3])),
        zero=draw(st.sampled_from([0.0, 0.3])),
        options=draw(options) | {"anchor": anchor},
        weights=draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=terms, max_size=terms).map(tuple)),
        steps=draw(st.integers(1, 4)),
        device=device,
    )
