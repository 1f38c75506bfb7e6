"""Random sequences of the public calls, compared with a float64 model after every call.

The seeds are other ones in each run; the tests' names and messages say them. RANDOM_CALLS_SEED=seed runs the sequences
from that seed on, and RANDOM_CALLS_COUNT=count as many of them.
"""

import os
import secrets
from random import Random

import pytest

from tests.support.call_checks import Disagreement
from tests.support.call_model import FAULTS
from tests.support.call_sequences import as_python, describe, draw_sequence, find_failure, shorten

COUNT = int(os.environ.get("RANDOM_CALLS_COUNT") or 2000)
# All processes of a run of pytest-xdist draw the same.
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID") or secrets.token_hex()
SEED = int(os.environ.get("RANDOM_CALLS_SEED") or Random(RUN).randrange(10**9))
BLOCK = 250  # sequences of a test, so that its name tells where a process has died
MOST_FOR_A_FAULT = 200

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("first", range(SEED, SEED + COUNT, BLOCK))
def test_random_calls(first: int) -> None:
    for seed in range(first, min(first + BLOCK, SEED + COUNT)):
        calls = draw_sequence(seed)
        if find_failure(calls):
            pytest.fail(describe(seed, calls), pytrace=False)


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_of_the_model_are_found(fault: str) -> None:
    for seed in range(MOST_FOR_A_FAULT):
        calls = draw_sequence(seed)
        if isinstance(find_failure(calls, fault), Disagreement):
            assert find_failure(calls) is None
            return
    pytest.fail(f"the fault is not found in {MOST_FOR_A_FAULT} sequences")


def test_a_failing_sequence_is_shortened_and_printed_as_a_program() -> None:
    fault = "applies gradients twice"
    calls = next(calls for calls in map(draw_sequence, range(MOST_FOR_A_FAULT)) if find_failure(calls, fault))
    short = shorten(calls, fault)
    assert len(short) == 4 < len(calls)  # the session, gradients, a step, and what finds that they wait still
    assert find_failure(short, fault)
    exec(as_python(short))  # without the fault nothing is wrong
