#!/usr/bin/env bash
# Proves the CUDA kernels on this machine's GPU: builds the package, runs the GPU tests, compute-sanitizer on a small case
# and the benchmarks. Leaves its logs in the folder given, the benchmarks' JSON and CSV in a folder of the GPU's name
# there: copied to bench/results, `make bench-report` makes tables and pictures of it. Needs torch, NumPy, pybind11,
# setuptools, pytest and pytest-benchmark installed, and no network; Hypothesis for the random cases, else skipped.
set -uo pipefail
out=$(mkdir -p "${1:?usage: bench/gpu_check.sh FOLDER}" && cd "$1" && pwd)
cd "$(dirname "$0")/.."

failed=0
run() {  # run NAME COMMAND...: its output goes to NAME.log, its verdict to the table
  local name=$1 start=$SECONDS
  shift
  if "$@" >"$out/$name.log" 2>&1; then verdict=passed; else verdict=FAILED failed=1; fi
  printf '%-12s %-7s %4d s   %s\n' "$name" "$verdict" $((SECONDS - start)) "$(tail -n 1 "$out/$name.log" | cut -c1-90)" \
    | tee -a "$out/table.txt"
}

small_case() {
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 python3 -m pytest -q -m gpu tests/test_gpu.py -k "layouts" || return 1
  done
}

benchmarks() {  # interrupted after a while, they still leave their records
  timeout --signal=INT 280 python3 -m pytest bench --device cuda --seconds 2 --record "$out" --show-capture=no
}

nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$out/table.txt" 2>&1
run build python3 -m pip install --no-deps --no-build-isolation --editable .
run report python3 -m mtadam_fused
run tests python3 -m pytest -q -m gpu tests/test_gpu.py tests/test_gpu_properties.py
run sanitizer small_case
run benchmarks benchmarks
for records in "$out"/*/benchmarks.json; do python3 bench/tables.py "$records" >>"$out/table.txt"; done
cat "$out/table.txt"
exit $failed
