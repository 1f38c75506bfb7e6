"""The native CPU kernels on every instruction set: one result, to the bit; no access out of bounds; faults are seen.

The cases are those of native_cases.py, which hold every number that a step writes to the formula.
"""

import ctypes
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from mtadam_fused.backends import native
from tests.kernels.native_cases import all_cases, check_rules, digest
from tests.kernels.single_numbers import check_single_numbers
from tests.support.cases import DTYPES
from tests.support.cuda_emulator import load
from tests.support.guard_pages import BUFFERS
from tests.support.sanitized import (
    CAPABILITIES,
    CSRC,
    FLAGS,
    INSTRUCTION_SETS,
    IS_X86,
    SANITIZE,
    Fault,
    Outcome,
    bindings,
    compile_all,
    kernels,
    link,
    loops,
    run_cases,
    runtimes,
    with_faults,
)

FORMULAS, RULES = "update_math.h", "rule_math.h"
UPDATES, ROWS = "cpu/updates.h", "cpu/update_rows.h"
INNER_LOOPS = ("products.h", "updates.h", "vectors.h")  # of csrc/cpu
THREADS = [1, 2, 3, 7]
DECAY = "(exp_avg_sq.set(j, exp_avg_sq[j] * (at.grad[k] ? V{} + 1 : row.beta2)), exp_avg_sq[j])"
LARGER, TOTAL = "moment[j] > sum[kLargest][j] ? moment[j] : sum[kLargest][j]", "sum[kTotal][j]"
LATE = "f.decay * (param - f.step_size * exp_avg / (square_root(largest) * f.inv_correction2 + f.eps))"

# Seen by the cases of every storage type alone: of MTAdam's kernels or both optimizers',
FAULTS = {
    "norm without the last element": Fault("cpu/term_norms.cpp", "chunk.end, found", "chunk.end - 1", "chunk.end"),
    "norm without the last chunk": Fault("cpu/sum_rows.h", "chunks.first_of(r + 1)", "chunks.first_of(r + 1) - 1"),
    "absent counts as zero": Fault("cpu/term_norms.cpp", "std::numeric_limits<C>::quiet_NaN()", "C(0)"),
    "running norm does not wait": Fault(FORMULAS, "first_nonzero && !(norm", "false", "first_nonzero"),
    "running norm does not move": Fault(FORMULAS, "left + (C(1) - decay) * norm", "norm_avg"),
    "last term is the anchor": Fault(FORMULAS, "return norm_avg[k];", "norm_avg[terms - 1]", "norm_avg[k]"),
    "anchor where none": Fault(FORMULAS, "anchor == kNoAnchor", "false"),
    "named anchor ignored": Fault(FORMULAS, "anchor >= 0 &&", "false", "anchor >= 0"),
    "sum of logarithms": Fault(FORMULAS, "logs / double(active)", "logs"),
    "norms not corrected": Fault(FORMULAS, "norms == kCorrected", "false"),
    "norms corrected for the next step": Fault("cpu/balance.cpp", "double(args.steps[r]) + 1", "args.steps[r] + 2.0"),
    "peak is the last norm": Fault(FORMULAS, "norm > left ? norm : left", "norm"),
    "peak decays": Fault(FORMULAS, "norms == kPeak", "false"),
    "decaying peak stays": Fault(FORMULAS, ": C(beta3)", "C(1)", "C(beta3)"),
    "no term weights": Fault(FORMULAS, "weight * (anchor / norm_avg)", "anchor / norm_avg"),
    "maximize ignored": Fault("launch.h", "C(g.grad_sign)", "C(1)"),
    "absent term decays": Fault(UPDATES, "moment[j] = exp_avg_sq[j]", DECAY, "exp_avg_sq[j]"),
    "absent term does not bound": Fault(
        UPDATES, LARGER, "at.grad[k] ? nan_max(sum[kLargest][j], moment[j]) : sum[kLargest][j]"
    ),
    "L2 decay once": Fault(
        FORMULAS, "scale, param, row.l2_decay)", "combined == C{} ? row.l2_decay : C{}", "row.l2_decay"
    ),
    "no decoupled decay": Fault(ROWS, "g.decoupled_decay", "0.0"),
    "amsgrad ignored": Fault(UPDATES, "if (at.max_exp_avg_sq[k])", "nullptr", "at.max_exp_avg_sq[k]"),
    "sum of the second moments": Fault(UPDATES, LARGER, "sum[kLargest][j] + moment[j]"),
    "terms before the sixth lost": Fault(UPDATES, "load_as<V>(kept_at(s, j))", "V{}"),
    "first moment not corrected": Fault(FORMULAS, "std::pow(beta1, step)", "0.0"),
    "second moment not corrected": Fault(FORMULAS, "std::pow(beta2, step)", "0.0"),
    "no eps": Fault(FORMULAS, "f.inv_correction2 + f.eps", "C{}", "f.eps"),
    "lr +1 %": Fault(FORMULAS, "f.step_size * exp_avg", "f.step_size * 1.01f", "f.step_size"),
    "decay after the update": Fault(FORMULAS, "f.decay * param", LATE),
    "first chunk left out": Fault(ROWS, "std::max(begin, last - kRun)", "begin + 1", "begin"),
    "last element left out": Fault(UPDATES, "; i < last; ++i", "i + 1 < last", "i < last"),
    "steps not counted": Fault("cpu/balance.cpp", "args.steps[r] += 1", "0", "1"),
    # and of CombinedAdam's.
    "combined: steps not counted": Fault("cpu/combined_adam.cpp", "args.steps[r] += 1", "0", "1"),
    "combined: one weight for all": Fault(UPDATES, "weight = broadcast<V>(at.scale[k])", "at.scale[0]", "at.scale[k]"),
    "combined: decay in the gradient": Fault(
        UPDATES, "value, gradient, sum[kCombined], largest", "gradient", "sum[kCombined]"
    ),
    "combined: amsgrad ignored": Fault(UPDATES, "if (at.max_exp_avg_sq[0])", "nullptr", "at.max_exp_avg_sq[0]"),
    "product without the last element": Fault("cpu/term_gram.cpp", "nullptr, begin, end, sums", "end - 1", "end"),
    "product with a fifth, the same": Fault("cpu/term_gram.cpp", "grad + before, begin, end, sums", "end - 1", "end"),
}

# Seen where single numbers are looked at.
FAULTS_OF_NUMBERS = {
    "norm of 1e-10 balanced": Fault(FORMULAS, "norm_avg > C(kTinyNorm)", "norm_avg >= C(kTinyNorm)"),
    "named anchor of 1e-10": Fault(FORMULAS, "norm_avg[anchor] > C(kTinyNorm)", "norm_avg[anchor] >= C(kTinyNorm)"),
    "anchor of 1e-10": Fault(FORMULAS, "norm_avg[k] > C(kTinyNorm)", "norm_avg[k] >= C(kTinyNorm)"),
    "running norm starts at 1e-10": Fault(FORMULAS, "!(norm > C(kTinyNorm))", "norm < C(kTinyNorm)"),
    "infinite norms count": Fault(FORMULAS, "!is_finite(norm)", "!has_started(norm)"),
    "NaN is not the largest": Fault(FORMULAS, "a >= b || a != a", "a >= b"),
    "NaN of a term is lost": Fault(UPDATES, f"{TOTAL} != {TOTAL} ? {TOTAL} : sum[kLargest][j]", "sum[kLargest][j]"),
    "bfloat16 cut off": Fault("float16.h", "u + 0x7fffu + (u >> 16 & 1u)", "u"),
    "bfloat16 ties away from zero": Fault("float16.h", "u + 0x7fffu + (u >> 16 & 1u)", "u + 0x8000u"),
    "half ties away from zero": Fault("float16.h", "0xfffu + (magnitude >> 13 & 1u)", "U{} + 0x1000u"),
    "largest half is infinite": Fault("float16.h", "magnitude >= 0x47800000u", "magnitude >= 0x477fe000u"),
    "subnormal halves are zero": Fault("float16.h", "magnitude < 0x0400u ? subnormal", "U{}", "subnormal"),
}

# Seen where the kernels of rules are checked: that of PCGrad and
FAULTS_OF_RULES = {
    "hashes without signs": Fault(
        RULES, "int64_t(splitmix64(first + uint64_t(j)))", "int64_t(splitmix64(first + uint64_t(j)) ^ 1ull << 63)"
    ),
    "one order for all terms": Fault(RULES, "uint64_t(k * terms)", "uint64_t(0)"),
    "the same orders at every step": Fault(RULES, "uint64_t(step)", "uint64_t(0)"),
    "a term meets itself": Fault(RULES, "other != k", "true"),
    "division by zero": Fault(RULES, "&& square > 0 &&", "true", "square > 0"),
    "projection without a conflict": Fault(RULES, "dot < 0", "true"),
    "twice the projection": Fault(RULES, "dot / square", "2 * dot / square"),
    "no preference": Fault(RULES, "preference ? preference[j] : 1.0", "1.0"),
    "sum for the mean": Fault(RULES, "mean && present", "false"),
    "mean over absent terms": Fault(RULES, "gram[j * terms + j] > 0", "true"),
    "step not counted": Fault("cpu/pcgrad.cpp", "*args.step += 1", "0", "1"),
    # that of eigenvalues.
    "half the angle": Fault(RULES, "2 * entry / (gap", "entry", "2 * entry"),
    "vectors not normalized": Fault(RULES, "1 / std::sqrt(1 + tangent * tangent)", "1.0"),
    "diagonal not turned": Fault(RULES, "second + tangent * entry", "second"),
    "too few sweeps": Fault(RULES, "sweep < kMostSweeps", "sweep < 2"),
    "too early an end": Fault(RULES, "<= 1e-15 *", "1e-6", "1e-15"),
    "rounding is a value": Fault(RULES, "kNull * peaks[r]", "kNull * values[r]"),
    # that of MGDA.
    "right-hand side not eliminated": Fault(RULES, "share * x[c]", "0.0"),
    "solution of one row alone": Fault(RULES, "matrix[r][c] * x[r]", "0.0"),
    "one product of two": Fault(RULES, "ratio[j] * cosines[r]", "0.0"),
    "the shortest gets all": Fault(RULES, "ratio[k] * y[k]", "0.0"),
    "negative weights": Fault(RULES, "!(y[k] > 0 && is_finite(y[k]))", "false"),
    "sum of the coefficients": Fault(
        RULES, "sum += is_in(k) ? y[k] * unit.inverse[k]", "y[k]", "y[k] * unit.inverse[k]"
    ),
    "last support left out": Fault("cpu/min_norm.cpp", "1u << args.size", "(1u << args.size) - 1", "1u << args.size"),
    "largest norm": Fault("cpu/min_norm.cpp", "!(square < least)", "least < 1e300 && square < least"),
}


@dataclass(frozen=True)
class Libraries:
    sanitized: Path | None
    seeded: Path  # with all faults above to choose from, for any machine
    contracted: Path  # the same; fuses multiplications and additions, which setup.py forbids


def can_sanitize(folder: Path) -> bool:
    """Tell whether the sanitizers' libraries, which some systems package apart from the compiler, are there."""
    source = folder / "empty.cpp"
    source.write_text("int main() {}\n")
    return subprocess.run(["g++", *SANITIZE, source, "-o", folder / "empty"], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Libraries:
    if not shutil.which("g++"):
        pytest.skip("no g++ to build the kernels with")
    folder = tmp_path_factory.mktemp("native")
    python = bindings(folder)
    isas = [isa for isa in INSTRUCTION_SETS if isa == "baseline" or IS_X86]
    sanitized = kernels(folder / "sanitized", CSRC, isas, SANITIZE) if can_sanitize(folder) else []
    source = with_faults(folder, [*FAULTS.values(), *FAULTS_OF_NUMBERS.values(), *FAULTS_OF_RULES.values()])
    seeded = kernels(folder / "seeded", source, ["baseline"], ["-O1"])
    fused = loops(folder, source, "baseline", ["-O2", "-ffp-contract=fast", *(["-mavx2", "-mfma"] if IS_X86 else [])])
    compile_all([python, *sanitized, fused, *seeded])
    others = [job for job in seeded if job.source.name != fused.source.name]
    return Libraries(
        link(folder / "sanitized.so", [python, *sanitized], SANITIZE) if sanitized else None,
        link(folder / "seeded.so", [python, *seeded]),
        link(folder / "contracted.so", [python, fused, *others]),
    )


@pytest.fixture(scope="module")
def outcomes(libraries: Libraries) -> dict[str, Outcome]:
    """Run the cases in all ways, side by side because each takes seconds."""
    jobs: dict[str, Callable[[], Outcome]] = {}
    best = CAPABILITIES[-1]
    for capability in reversed(CAPABILITIES):
        threads = THREADS if capability == best else [2]
        jobs[capability] = partial(run_cases, capability, overrun="guard", guards=True, numbers=True, threads=threads)
    if libraries.sanitized:
        sanitized = partial(run_cases, preload=runtimes(), library=str(libraries.sanitized), all=True)
        for capability in CAPABILITIES:
            jobs[f"sanitized {capability}"] = partial(sanitized, capability)
        jobs[f"sanitized {best}"] = partial(
            sanitized, best, overrun="heap", numbers=True, rules=True, random=True, threads=[2]
        )
    for pool in ("openmp", "serial"):
        jobs[pool] = partial(run_cases, best, pool=pool, threads=[3])
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        return dict(zip(jobs, workers.map(lambda job: job(), jobs.values()), strict=True))


def outcome_of(outcomes: dict[str, Outcome], name: str) -> Outcome:
    if name not in outcomes:
        pytest.skip("g++ cannot link the sanitizers: install libasan and libubsan")
    outcome, capability = outcomes[name], name.split()[-1]
    if outcome["isa"] != capability:
        pytest.skip(f"this machine lacks {capability}: the kernels ran with {outcome['isa']}")
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_one_result_on_every_instruction_set(capability: str, outcomes: dict[str, Outcome]) -> None:
    """Run with all buffers beside guard pages, which nothing may read or write."""
    outcome, expected = outcome_of(outcomes, capability), outcomes["default"]
    assert outcome["all"] == expected["all"]
    assert outcome["2 threads"] == expected["2 threads"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [CAPABILITIES[-1], "openmp", "serial"])
def test_one_result_on_every_number_of_threads(name: str, outcomes: dict[str, Outcome]) -> None:
    of_torch = "torch" if torch.__version__ >= "2.10" else "openmp"  # see csrc/cpu/parallel.cpp
    outcome = outcomes[name]
    assert outcome["threading"] == (of_torch if name in CAPABILITIES else name)
    found = {value for run, value in outcome.printed.items() if run.endswith(" threads")}
    assert found == {outcomes["default"]["2 threads"]}


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
def test_sanitizers_find_nothing(capability: str, outcomes: dict[str, Outcome]) -> None:
    outcome = outcome_of(outcomes, f"sanitized {capability}")
    assert outcome.stderr.rpartition("== end\n")[2] == ""  # what comes before it was asked for
    assert outcome["all"] == outcomes["default"]["all"]


@pytest.mark.slow
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("buffer", BUFFERS)
def test_guard_sees_overrun(buffer: str, capability: str, outcomes: dict[str, Outcome]) -> None:
    """Negative control: the vector loops, which the sanitizers' build does not have, end at a guard page too."""
    outcome = outcome_of(outcomes, capability)
    assert (outcome["none"], outcome[buffer]) == (0, -signal.SIGSEGV)


@pytest.mark.slow
@pytest.mark.parametrize("buffer", [*BUFFERS, "misaligned"])
def test_sanitizer_sees_overrun(buffer: str, outcomes: dict[str, Outcome]) -> None:
    """Negative control: an element too far, or an address that is none of an element, is reported, in the kernels."""
    outcome = outcome_of(outcomes, f"sanitized {CAPABILITIES[-1]}")
    report = outcome.stderr.partition(f"== {buffer}\n")[2].partition("\n== ")[0]
    assert outcome["none"] == 0
    assert outcome[buffer] != 0
    assert ("load of misaligned address" if buffer == "misaligned" else "heap-buffer-overflow") in report
    assert any(header in report for header in INNER_LOOPS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("checked", ["reference", "cpu"])
def test_cases(checked: str, dtype: torch.dtype) -> None:
    digest(all_cases((dtype,)), checked)


@pytest.mark.parametrize("checked", ["reference", "cpu"])
def test_single_numbers(checked: str) -> None:
    check_single_numbers(checked)


def pick(library: Path, number: int) -> None:
    ctypes.c_int.in_dll(ctypes.CDLL(str(library)), "mtadam_fault").value = number


@pytest.fixture(scope="module")
def seeded(libraries: Libraries) -> Iterator[Path]:
    """Put the module with faults to choose from in the place of the installed one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "module", load(libraries.seeded))
        yield libraries.seeded
        pick(libraries.seeded, 0)


@pytest.mark.slow
def test_no_fault_passes(seeded: Path, outcomes: dict[str, Outcome]) -> None:
    """The control of the negative controls."""
    pick(seeded, 0)
    check_single_numbers("cpu")
    check_rules()
    assert digest(all_cases()) == outcomes["default"]["all"]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(FAULTS) + 1), ids=list(FAULTS))
def test_fault_is_seen(number: int, seeded: Path) -> None:
    pick(seeded, number)
    for dtype in DTYPES:
        with pytest.raises(AssertionError):
            digest(all_cases((dtype,)))


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(FAULTS_OF_NUMBERS) + 1), ids=list(FAULTS_OF_NUMBERS))
def test_fault_of_single_numbers_is_seen(number: int, seeded: Path) -> None:
    pick(seeded, len(FAULTS) + number)
    with pytest.raises(AssertionError):
        check_single_numbers("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("number", range(1, len(FAULTS_OF_RULES) + 1), ids=list(FAULTS_OF_RULES))
def test_fault_of_rules_is_seen(number: int, seeded: Path) -> None:
    pick(seeded, len(FAULTS) + len(FAULTS_OF_NUMBERS) + number)
    with pytest.raises(AssertionError):
        check_rules()


@pytest.mark.slow
def test_digest_tells_contraction(
    libraries: Libraries, outcomes: dict[str, Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loops that round a multiplication and an addition once pass the formula, but do not give the same bits."""
    if not has_fma():
        pytest.skip("this machine has no fused multiply-add")
    monkeypatch.setattr(native, "module", load(libraries.contracted))
    assert digest(all_cases()) != outcomes["default"]["all"]


def has_fma() -> bool:
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and " fma " in cpuinfo.read_text()


def test_conversions(tmp_path: Path) -> None:
    """csrc/float16.h alone, every 16-bit number, in the modes of the processor."""
    if not shutil.which("g++"):
        pytest.skip("no g++ to build the program with")
    source, program = Path(__file__).parent / "native" / "test_conversions.cpp", tmp_path / "test_conversions"
    macros = ["-DMTADAM_X86=1"] if IS_X86 else []
    subprocess.run(["g++", *FLAGS, *macros, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
