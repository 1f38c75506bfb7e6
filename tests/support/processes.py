"""Start the processes of a gloo group on this machine; helpers that run in each of them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mtadam_fused.rules import Rule
from tests.support.documentation import DOCS, make_batch, prepared_names, python_blocks, run_blocks

ROOT = Path(__file__).parents[2]


def run_all(number: int, folder: Path, module: str, *arguments: str) -> list[str]:
    """Run ``python -m MODULE *ARGUMENTS RANK METHOD`` in so many processes, and return what each prints.

    METHOD is for init_process_group.
    """
    command = [sys.executable, "-m", module, *arguments]
    meeting = f"file://{folder / 'meeting'}"
    runs = [
        subprocess.Popen([*command, str(rank), meeting], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for rank in range(number)
    ]
    outputs = [run.communicate(timeout=100)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * number
    return outputs


def save_and_exit(folder: Path, rank: int, results: Any) -> None:
    """End the process, after saving what it has found in the folder."""
    torch.save(results, folder / f"{rank}.pt")
    dist.barrier()
    sys.stdout.flush()
    os._exit(0)  # without the end of gloo's threads, which now and then aborts a process


def error_of(call: Callable[[], Any]) -> str:
    try:
        call()
    except (RuntimeError, TypeError, ValueError) as error:
        return str(error)
    return "none"


def run_page(name: str) -> list[Tensor]:
    """Run the code of a page under docs on other data in each process; return the network's state."""
    torch.manual_seed(0)
    names = prepared_names()
    network = names["model"]
    names |= {"network": network, "loader": [make_batch(1.0 + dist.get_rank())] * 2}
    blocks = python_blocks((DOCS / name).read_text())
    assert any("optimizer.step()" in block for block in blocks)
    run_blocks(blocks, names, name)
    return list(network.state_dict().values())


class Spy(Rule):
    """A rule that keeps what it is given.

    Args:
        weights: returns the weights, from the losses.
    """

    needs_losses = True

    def __init__(self, weights: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._weights = weights

    def __call__(self, gram: Tensor, losses: Tensor) -> Tensor:
        self.gram, self.losses = gram.clone(), losses.clone()
        return self._weights(losses)
