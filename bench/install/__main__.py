"""Time ``pip install .`` and a first run: ``python -m bench.install`` takes minutes, and writes what README says of it.

From a copy of the sources, so that nothing is compiled yet: without nvcc, and with it where it is found. What is timed
is all that pip does but for torch, which is there already. The example then runs on what was installed.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.harness.devices import cpu_model

ROOT = Path(__file__).parents[2]
SOURCES = (
    "csrc",
    "mtadam_fused",
    "triton_kernels",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
)
EXAMPLE = "multitask.py"


def timed(command: list[str], folder: Path, environment: dict[str, str]) -> dict[str, float]:
    """Run the command; return its seconds, and those of the processors."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": time.perf_counter() - start, "cpu_seconds": used}


def without_nvcc() -> dict[str, str]:
    """Return an environment in which no nvcc is found."""
    found = os.environ["PATH"].split(os.pathsep)
    paths = [path for path in found if not Path(path, "nvcc").exists()]
    names = set(os.environ) - {"CUDA_HOME", "CUDA_PATH", "PYTHONPATH"}
    return {name: os.environ[name] for name in names} | {"PATH": os.pathsep.join(paths)}


def install(environment: dict[str, str], target: Path) -> dict[str, float]:
    """Install a copy of the sources, and time that."""
    with tempfile.TemporaryDirectory() as folder:
        for name in SOURCES:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns("*.so", "_build.json"))
            else:
                shutil.copy(source, folder)
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), "."]
        return timed(command, Path(folder), environment)


def measure() -> dict[str, Any]:
    """Install and run the example."""
    results: dict[str, Any] = {"cpu_model": cpu_model(), "processors": os.cpu_count(), "example": EXAMPLE}
    with tempfile.TemporaryDirectory() as folder:
        target, environment = Path(folder, "cpu"), without_nvcc()
        results["install"] = install(environment, target)
        results["installed_bytes"] = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        shutil.copy(ROOT / "examples" / EXAMPLE, folder)
        # On one thread: those of a busy machine spend processor time in waiting for each other.
        run_with = environment | {"PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}
        results["first_run"] = timed([sys.executable, EXAMPLE], Path(folder), run_with)
        if shutil.which("nvcc"):
            inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
            results["install_with_cuda"] = install(inherited, Path(folder, "cuda"))
    return results


def say(results: dict[str, Any]) -> str:
    """Say in sentences what was measured, in processor time: that other work on the machine changes it little."""

    def seconds(of: str) -> str:
        return f"{results[of]['cpu_seconds']:.0f} seconds of processor time"

    sentences = [
        f"Without the download of torch, `pip install .` took {seconds('install')}, and what it installed takes "
        f"{results['installed_bytes'] / 1e6:.1f} MB."
    ]
    if "install_with_cuda" in results:
        sentences.append(f"With nvcc, for three GPU architectures, it took {seconds('install_with_cuda')}.")
    return "\n".join([*sentences, f"The example `{results['example']}` took {seconds('first_run')}, on one thread."])


def main() -> None:
    """Measure, or with ``--report`` only write the sentences anew."""
    parser = argparse.ArgumentParser(description="Time pip install and a first run.")
    parser.add_argument("--out", type=Path, default=Path("build/install"), help="output folder (build/install)")
    parser.add_argument("--report", action="store_true", help="do not measure: take the numbers in the output folder")
    options = parser.parse_args()
    numbers = options.out / "install.json"
    if not options.report:
        options.out.mkdir(parents=True, exist_ok=True)
        numbers.write_text(json.dumps(measure(), indent=1) + "\n")
    text = say(json.loads(numbers.read_text()))
    (options.out / "install.md").write_text(f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
