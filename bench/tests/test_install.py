"""What README says of installing is what was measured."""

import json
import os
import sys
from pathlib import Path

import pytest

from bench.install import __main__ as install

NUMBERS = {
    "example": "some.py",
    "installed_bytes": 1_250_000,
    "install": {"seconds": 40.0, "cpu_seconds": 21.4},
    "first_run": {"seconds": 9.0, "cpu_seconds": 7.6},
}


def test_sentences_are_written_from_the_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "install.json").write_text(json.dumps(NUMBERS))
    monkeypatch.setattr(sys, "argv", ["install", "--report", "--out", str(tmp_path)])
    install.main()
    first, last = (tmp_path / "install.md").read_text().splitlines()
    assert "took 21 seconds of processor time, and what it installed takes 1.2 MB" in first
    assert last == "The example `some.py` took 8 seconds of processor time, on one thread."
    with_cuda = NUMBERS | {"install_with_cuda": {"seconds": 200.0, "cpu_seconds": 345.6}}
    assert "With nvcc, for three GPU architectures, it took 346 seconds" in install.say(with_cuda)


def test_nvcc_is_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvcc").touch()
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/bin")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    environment = install.without_nvcc()
    assert environment["PATH"] == "/bin"
    assert "CUDA_HOME" not in environment
