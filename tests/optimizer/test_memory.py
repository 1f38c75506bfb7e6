"""State: 4K + 4 bytes per float32 element, CombinedAdam 8. A step allocates nothing that grows with the parameters."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from mtadam_fused import CombinedAdam, MTAdam
from mtadam_fused.rules import PCGrad
from tests.support.cases import fewer

# Run in a process of its own: peak memory is of the whole process. Prints how far a step raises the peak above what is
# resident with all gradients held, in bytes per element.
STEP = """
import resource, sys, torch
from mtadam_fused import CombinedAdam, MTAdam, rules
n, terms = 8_000_000, 3
p = torch.nn.Parameter(torch.randn(n))
optimizer = eval(sys.argv[1])
def resident():
    pages = int(open("/proc/self/statm").read().split()[1])
    return pages * resource.getpagesize()
for step in range(3):
    for k in range(terms):
        with optimizer.term(k):
            p.grad = torch.full((n,), 1.0 + k)
    open("/proc/self/clear_refs", "w").write("5")  # the peak starts anew
    held = resident()
    optimizer.step()
peak = 1024 * next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
print((peak - held) / n)
"""


@pytest.mark.parametrize("terms", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_bytes_of_state(terms: int, dtype: torch.dtype, backend: str) -> None:
    p = nn.Parameter(torch.randn(fewer(1000, backend), 100).to(dtype))
    optimizer = MTAdam([p], backend=backend)
    optimizer.backward([p.sum() for _ in range(terms)])
    optimizer.step()
    storages = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in optimizer.state[p].values()}
    size = 8 if dtype == torch.float64 else 4
    per_element = size * (terms + 1)
    assert per_element <= sum(storages.values()) / p.numel() <= per_element + 100 / p.numel()
    combined = CombinedAdam([p], PCGrad(), backend=backend)
    combined.backward([p.sum() for _ in range(terms)])
    combined.step()
    assert sum(v.nbytes for v in combined.state[p].values() if v.dim()) == 2 * size * p.numel()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_step_allocates_nothing_that_grows_with_the_parameters() -> None:
    def growth(optimizer: str) -> float:
        run = subprocess.run([sys.executable, "-c", STEP, optimizer], capture_output=True, text=True, check=False)
        if "Permission denied" in run.stderr:
            pytest.skip("this system does not let a process reset its peak memory")
        assert run.returncode == 0, run.stderr
        return float(run.stdout)

    assert growth("MTAdam([p], backend='cpu')") < 0.2  # bytes per element
    assert growth("MTAdam([p], second_moments='shared', backend='cpu')") < 0.2
    assert growth("CombinedAdam([p], rules.PCGrad(), backend='cpu')") < 0.2
    # The measurement sees what keep_combined_grad allocates.
    assert growth("MTAdam([p], keep_combined_grad=True, backend='cpu')") > 3.5
