"""README says what is true: its Python runs, and its links lead somewhere."""

import inspect
import re
from pathlib import Path

import torch
from torch import nn

import mtadam_fused
from mtadam_fused import rules, weighting
from tests.support.documentation import README, make_batch, python_blocks

ROOT = Path(__file__).parents[2]


def test_python_blocks_run() -> None:
    in_processes = ("no_sync", "fully_shard")  # in the blocks that test_ddp.py and test_dtensor.py run
    blocks = [block for block in python_blocks() if not any(word in block for word in in_processes)]
    assert len(blocks) == 9
    model = nn.Linear(3, 3)
    before = model.weight.detach().clone()
    names: dict = {"torch": torch, "model": model, "loader": [make_batch()]}
    names |= {"scaler": torch.amp.GradScaler("cpu"), "last_layer": model}
    exec(blocks[0], names)
    assert not torch.equal(model.weight, before)
    exec(blocks[1], names)
    exec(blocks[2], names | losses_of(model))
    exec(blocks[3], names | losses_of(model))
    assert set(names["optimizer"].term_scales()) == {"depth", "normals"}
    for block in blocks[4:]:
        before = model.weight.detach().clone()
        names |= losses_of(model)
        exec(block, names)
        assert not torch.equal(model.weight, before)
    assert not names["weighting"].p.eq(1).any()


def losses_of(model: nn.Module) -> dict[str, torch.Tensor]:
    out = model(torch.randn(5, 3))
    return {"depth_loss": out.square().mean(), "normals_loss": out.abs().mean()}


def test_docstring_example_is_readmes() -> None:
    for line in ("optimizer = BalancedAdam(model.parameters(), lr=1e-3)", "optimizer.backward(losses)"):
        assert line in README
        assert line in (mtadam_fused.BalancedAdam.__doc__ or "")


def test_pictures_and_files_exist() -> None:
    for path in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


def test_public_names_have_docstrings() -> None:
    for module in (mtadam_fused, rules, weighting):
        for value in filter(callable, (getattr(module, name) for name in module.__all__)):
            names = [name for name, m in vars(value).items() if callable(m) and not name.startswith("_")]
            assert value.__doc__
            assert all(inspect.getdoc(getattr(value, name)) for name in names), value  # of its own, or of the base
