"""README and the pages under docs, and the code in them."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ON_GPU = "# on a GPU\n"  # the first line of a block that only a GPU can run
WHOLE_FILE = "--8<--\nexamples/"  # the beginning of a block that is a whole example


def python_blocks(text: str = README) -> list[str]:
    """Return the Python in a text of Markdown; of a diff the new side."""
    blocks = []
    for indent, kind, code in re.findall(r"^( *)```(python|diff)\n(.*?)^\1```", text, re.DOTALL | re.MULTILINE):
        code = re.sub(f"^{indent}", "", code, flags=re.MULTILINE)
        blocks.append(code if kind == "python" else re.sub(r"^(-.*\n|[+ ])", "", code, flags=re.MULTILINE))
    return blocks


def make_batch(size: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Make a batch for the examples: inputs, depth and normals."""
    return size * torch.randn(5, 3), size * torch.randn(5), size * torch.randn(5, 2)


def losses_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the losses that the examples name, with new graphs."""
    out = model(torch.randn(5, 3))
    return {"depth_loss": out.square().mean(), "normals_loss": out.abs().mean()}


def prepared_names() -> dict[str, Any]:
    """Return what the examples take for granted."""
    model = nn.Linear(3, 3)
    names = {"torch": torch, "nn": nn, "model": model, "last_layer": model}
    return names | {"loader": [make_batch()] * 3, "scaler": torch.amp.GradScaler("cpu")}


def run_blocks(blocks: list[str], names: dict[str, Any], source: str = "block") -> None:
    """Run the blocks in order, in one namespace. Those for a GPU are only compiled, whole examples are left out.

    Args:
        names: the namespace; losses of its ``model`` are made anew for each block.
        source: shown in tracebacks.
    """
    for number, block in enumerate(blocks, start=1):
        if block.startswith(WHOLE_FILE):
            continue
        code = compile(block, f"{source}, block {number}", "exec")
        if not block.startswith(ON_GPU):
            names |= losses_of(names["model"])
            exec(code, names)
