"""Every example runs, with 20 steps, and prints what it promises."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
FRAMEWORKS = {
    "lightning_module.py": "lightning",
    "accelerate_loop.py": "accelerate",
    "transformers_trainer.py": "transformers",
}
NUMBER = r"[\d.e+-]+"
PRINTED = {
    "gan.py": rf"BalancedAdam: {NUMBER} % of the generated digits",
    "pinn.py": rf"BalancedAdam: relative error {NUMBER} halfway, {NUMBER} at the end",
    "vqgan_weight.py": rf"discriminator's loss times 1000, adaptive weight {NUMBER}: reconstruction error {NUMBER}",
    "multitask.py": rf"BalancedAdam: {NUMBER} % of the digits, the center to {NUMBER} pixels",
    "distillation.py": rf"student, BalancedAdam: {NUMBER} %",
    "lightning_module.py": rf"after 20 steps: size {NUMBER}, angle {NUMBER}",
    "lightning_module.py --manual": rf"after 20 steps: size {NUMBER}, angle {NUMBER}",
    "accelerate_loop.py": rf"total loss: {NUMBER} in the beginning, {NUMBER} after 20 steps",
    "transformers_trainer.py": rf"accuracy: {NUMBER} % before, {NUMBER} % after 20 steps",
    "ddp.py": r"process [01]: replicas are equal: True",
    "fsdp2.py": rf"total loss: {NUMBER} at the checkpoint, {NUMBER} after 20 steps",
}
FALLING = {  # where to find a loss that falls within 20 steps, before and after
    "lightning_module.py": rf"size ({NUMBER})",
    "lightning_module.py --manual": rf"size ({NUMBER})",
    "accelerate_loop.py": rf"({NUMBER}) (?:in the beginning|after)",
    "ddp.py": rf"total loss ({NUMBER})",
    "fsdp2.py": rf"({NUMBER}) (?:at the checkpoint|after)",
}
PICTURES = ("gan.py", "pinn.py")
DISTRIBUTED = ("ddp.py", "fsdp2.py")


@pytest.mark.parametrize("words", PRINTED)
def test_example(words: str, tmp_path: Path) -> None:
    name, *options = words.split()
    if name in FRAMEWORKS and importlib.util.find_spec(FRAMEWORKS[name]) is None:
        pytest.skip(f"{FRAMEWORKS[name]} is not installed")
    if name == "fsdp2.py" and torch.__version__ < "2.11":
        pytest.skip("FSDP2 of this torch does not run on the CPU")
    picture = tmp_path / "picture.png"
    start = ["-m", "torch.distributed.run", "--nproc_per_node=2"] if name in DISTRIBUTED else []
    if start:  # at ports that are free, of whatever else this machine runs
        start += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", "-m", "tests.support.run_and_exit"]
    out = ["--out", str(picture)] if name in PICTURES else []
    run = subprocess.run(
        [sys.executable, *start, str(ROOT / "examples" / name), "--steps", "20", *options, *out],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    assert re.search(PRINTED[words], run.stdout)
    if words in FALLING:
        losses = [float(value) for value in re.findall(FALLING[words], run.stdout)]
        assert losses[0] > losses[-1]
    assert "UserWarning: step() ignores" not in run.stderr
    assert "replicas drift apart" not in run.stderr
    assert picture.exists() == (name in PICTURES)


def test_each_example_is_short_and_is_run() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "examples").glob("*.py")}
    assert set(files) == {words.split()[0] for words in PRINTED}
    for name, text in files.items():
        assert text.count("\n") < 120, name
        assert f"python examples/{name}" in text or f"torchrun --nproc_per_node 2 examples/{name}" in text
