"""Random sequences of calls: drawn from a seed, run, and shortened when they fail."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple

import torch

from tests.support.call_arithmetic import Unsure
from tests.support.call_session import Session

DTYPES = (torch.float32, torch.float64, torch.bfloat16)
SHAPES = ((1,), (3,), (7,), (5, 7), (2, 3, 2, 4), (50,), (), (0,))
LAYOUTS = ("contiguous", "contiguous", "transposed", "channels_last", "sliced", "offset")
KINDS = ("MTAdam", "MTAdam", "MTAdam", "BalancedAdam", "BalancedAdam", "fixed", "normalization", "by_loss")
TERMS = "abcd"
VALUES: dict[str, tuple[Any, ...]] = {
    "lr": (0.01, 0.1, 0.0),
    "betas": ((0.9, 0.999, 0.9), (0.5, 0.9, 0.0), (0.0, 0.0, 0.99)),
    "eps": (1e-8, 1e-3),
    "weight_decay": (0.0, 0.1),
    "amsgrad": (False, True),
    "maximize": (False, True),
    "decoupled_weight_decay": (False, True),
}
OF_MTADAM: dict[str, tuple[Any, ...]] = {
    "norm_init": ("first_step", "first_nonzero"),
    "anchor": ("first", "none", "geometric_mean", "b"),
    "norms": ("average", "corrected", "peak", "decaying_peak"),
    "term_weights": (None, {"a": 1.0, "b": 2.0, "c": 0.5, "d": 0.1}),
}
BAD: dict[str, Any] = {"lr": -1.0, "betas": (2.0, 0.9, 0.9), "eps": math.nan, "weight_decay": -0.1}


class Call(NamedTuple):
    """A call on a session, or the making of one."""

    name: str
    arguments: dict[str, Any]

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.name}({arguments})".replace("=nan", "=math.nan").replace("=inf", "=math.inf")


def draw_sequence(seed: int) -> list[Call]:
    """Return the making of a session and 5 to 40 calls on it."""
    random = Random(seed)
    kind = random.choice(KINDS)
    values = VALUES | OF_MTADAM if kind in ("MTAdam", "BalancedAdam") else VALUES
    making: dict[str, Any] = {"kind": kind, "params": [draw_spec(random) for _ in range(random.randint(1, 4))]}
    first = random.randint(1, len(making["params"]))
    making["groups"] = [(first, {})]
    if first < len(making["params"]):
        making["groups"].append((len(making["params"]) - first, draw_options(random, values, 0.2)))
    making |= {"backend": "reference" if random.random() < 0.2 else "cpu", "seed": random.randrange(10**6)}
    making |= draw_options(random, values, 0.4)
    making |= {"terms": random.sample(TERMS, len(TERMS))} if random.random() < 0.15 else {}
    making |= {name: True for name in ("keep_combined_grad", "check_finite") if random.random() < 0.3}
    if kind in ("MTAdam", "BalancedAdam"):
        making["second_moments"] = random.choice(["per_term", "shared"])
    else:
        making["passes"] = random.choice(["auto", "per_term"])
    calls, number = [Call("Session", making)], random.randint(5, 40)
    while len(calls) <= number:
        call = draw_call(random, values)
        if "step" in (call.name, call.arguments.get("call")) and len(calls) < number and random.random() < 0.5:
            calls.append(Call("backward", draw_arguments(random, "backward", values)))  # or many would be empty
        calls.append(call)
    return calls


def draw_spec(random: Random) -> tuple[Any, ...]:
    return random.choice(SHAPES), random.choice(DTYPES), random.choice(LAYOUTS)


def draw_options(random: Random, values: dict[str, tuple[Any, ...]], share: float) -> dict[str, Any]:
    """Return some of the hyper-parameters, for any optimizer."""
    chosen = {name: random.choice(some) for name, some in values.items() if random.random() < share}
    if "betas" in chosen and "norms" not in values:
        chosen["betas"] = chosen["betas"][:2]
    return chosen


def draw_call(random: Random, values: dict[str, tuple[Any, ...]]) -> Call:
    """Return a call; it is possible in any state."""
    name = random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    return Call(name, draw_arguments(random, name, values))


WEIGHTS = {
    **{"backward": 25, "term": 15, "step": 25, "zero_grad": 4, "bad_losses": 3, "stray_grad": 2},
    **{"set": 4, "bad_step": 2, "add_group": 2, "bad_group": 2, "save": 4, "load": 5, "copy": 2},
    **{"convert": 3, "swap": 3, "exchange": 3, "interrupt": 8, "move": 1, "clip": 3},
}


def draw_arguments(random: Random, name: str, values: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    number = random.randrange(100)
    flags = random.random() < 0.5, random.random() < 0.5
    if name == "backward":
        terms = random.sample(TERMS, random.choice([1, 2, 2, 3]))
        return {"terms": terms, **draw_gradients(random), **({"as_list": True} if number < 20 else {})}
    if name == "term":
        more: dict[str, Any] = {"layout": random.choice(LAYOUTS)} if flags[0] else {}
        more |= {"loss": False} if number < 20 else {}
        return {"name": random.choice(TERMS), **draw_gradients(random), **more}
    if name == "interrupt":
        call = random.choice(["step", "step", "step", "backward", "term", "zero_grad", "load"])
        line = random.randint(1, {"step": 400, "backward": 200, "term": 100, "zero_grad": 12, "load": 250}[call])
        again = {"again": True} if flags[0] and call == "step" else {}
        return {"line": line, "call": call, **again, **draw_arguments(random, call, values)}
    if name == "set":
        chosen = random.choice(list(values))
        return {"group": number, "name": chosen, "value": random.choice(values[chosen])}
    if name == "bad_step":
        chosen = random.choice(list(BAD))
        return {"group": number, "name": chosen, "value": BAD[chosen]}
    if name == "add_group":
        return {"spec": draw_spec(random), "seed": random.randrange(10**6), **draw_options(random, values, 0.2)}
    if name == "convert":
        return {"number": None if flags[0] else number, "dtype": random.choice(DTYPES)}
    if name == "swap":
        return {"number": number, "dtype": random.choice(DTYPES)}
    if name == "exchange":
        return {"number": number, "layout": random.choice([*LAYOUTS, "shared"]), "state": flags[0]}
    others: dict[str, dict[str, Any]] = {
        "zero_grad": {"set_to_none": flags[0]},
        "load": {"number": number, "fresh": flags[0], "file": flags[1]},
        "copy": {"by_pickle": flags[0]},
        "step": {"closure": True} if number < 10 else {},
        "save": {},
        "clip": {"max_norm": random.choice([0.1, 1.0, 10.0])},
        "move": {"device": random.choice(["cuda", "cpu"])},
    }
    return others.get(name, {"number": number})


def draw_gradients(random: Random) -> dict[str, Any]:
    more: dict[str, Any] = {"bad": random.choice([math.nan, math.inf])} if random.random() < 0.04 else {}
    more |= {"raises": True} if random.random() < 0.04 else {}
    return {"seed": random.randrange(10**6), **more}


def run_sequence(calls: Sequence[Call], fault: str | None = None) -> None:
    """Run a sequence; the ``fault`` is one of the model's.

    Raises:
        Disagreement: the optimizer is not as the model says.
    """
    (_, making), *others = calls
    session = Session(**making, fault=fault)
    with suppress(Unsure):
        for name, arguments in others:
            getattr(session, name)(**arguments)


def find_failure(calls: Sequence[Call], fault: str | None = None) -> Exception | None:
    try:
        run_sequence(calls, fault)
    except Exception as error:  # whatever goes wrong is found
        return error
    return None


def shorten(calls: Sequence[Call], fault: str | None = None) -> list[Call]:
    """Return a sequence that still fails, without calls that are not needed for that."""
    kept = list(calls)
    size = len(kept) // 2
    while size:
        for candidate in without(kept, size):
            if find_failure(candidate, fault):
                kept = candidate
                break
        else:
            size //= 2
    return kept


def without(calls: list[Call], size: int) -> Iterator[list[Call]]:
    """Iterate over the sequences that lack ``size`` calls in a row, the last ones first."""
    for start in range(len(calls) - size, 0, -1):
        yield [*calls[:start], *calls[start + size :]]


def as_python(calls: Sequence[Call]) -> str:
    """Return a sequence as a program."""
    making, *others = map(str, calls)
    imports = "import math\n\nimport torch\n\nfrom tests.support.call_session import Session"
    return "\n".join([f"{imports}\n\nsession = {making}", *(f"session.{call}" for call in others)])


def describe(seed: int, calls: Sequence[Call]) -> str:
    """Return a failing sequence as programs, shortened and in full, and how to run it again."""
    short = shorten(calls)
    return (
        f"sequence {seed} fails: {find_failure(calls)}\n\nin short, {find_failure(short)}:\n{as_python(short)}\n\n"
        f"in full:\n{as_python(calls)}\n\nto run it again: RANDOM_CALLS_SEED={seed} RANDOM_CALLS_COUNT=1"
    )
