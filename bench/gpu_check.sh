#!/usr/bin/env bash
# Proves the kernels on this machine's GPU, in nine minutes at most: builds the package, runs the GPU tests on each backend,
# reads hardware counters, runs the benchmarks, and compute-sanitizer on small cases. If time is left, it sweeps the
# backend's constants and times torch.compile. Leaves in FOLDER a table, five logs, and in a folder of the GPU's name the
# benchmarks' JSON and CSV: copied to bench/results, `make bench-report` makes tables and pictures of it. COMMIT is what the
# records name where the sources came without git. Needs torch, NumPy, pybind11, ninja, setuptools, pytest and
# pytest-benchmark installed, and no network; Hypothesis for the random cases, else skipped. ncu, for the counters, and
# compute-sanitizer may be missing or refused.
set -uo pipefail
shopt -s nullglob
out=$(mkdir -p "${1:?usage: bench/gpu_check.sh FOLDER [COMMIT]}" && cd "$1" && pwd) || exit
cd "$(dirname "$0")/.." || exit
export MTADAM_FUSED_COMMIT=${2:-} PATH=$PATH:/usr/local/cuda/bin
end=495  # seconds after the start: what runs then has 10 more to stop, and the tables 20 to be made

say() {  # say NAME VERDICT SECONDS TEXT: a line of the table
  printf '%-19s %-7s %4d s   %s\n' "$1" "$2" "$3" "${4:0:100}" | tee -a "$out/table.txt"
}

run() {  # run NAME LIMIT COMMAND...: its output goes to the log that NAME begins with, its verdict to the table
  local name=$1 limit=$2 start=$SECONDS log=$out/${1%%-*}.log verdict
  shift 2
  ((limit < end - start)) || limit=$((end - start))
  if ((limit < 5)); then say "$name" FAILED 0 "no time was left"; return; fi
  echo "== $name" >>"$log"
  timeout --signal=INT --kill-after=10 "$limit" "$@" >>"$log" 2>&1
  case $? in
    0) if tail -n 2 "$log" | grep -qE '(^|= )[0-9]+ skipped'; then verdict=skipped; else verdict=passed; fi ;;
    5) verdict=skipped ;;  # pytest found no test, or ncu counted nothing
    124 | 137) verdict=${when_cut:-FAILED} ;;
    *) verdict=FAILED ;;
  esac
  say "$name" "$verdict" $((SECONDS - start)) "$(tail -n 1 "$log")"
}

spare() {  # spare NAME LEAST COMMAND...: runs it for as long as is left, if that is LEAST or more
  local left=$((end - SECONDS))
  if ((left < $2)); then say "$1" cut 0 "no time was left"; else when_cut=cut run "$1" "$left" "${@:3}"; fi
}

printed() {  # printed NAME: the tables in the log of a command
  sed -n "/^== $1\$/,/^== /{/^|/p; /^\$/p}" "$out/${1%%-*}.log" 2>/dev/null
}

test_backend() {  # test_backend NAME RANDOM TESTS: in processes of its own, for an illegal access ends all work in one
  export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
  run "$1-tests" 180 "${pytest[@]}" tests/gpu/test_gpu.py -k "$3"
  run "$1-random" 75 "${pytest[@]}" tests/gpu/test_gpu_properties.py -k "$2"
}

sanitize() {  # sanitize TOOL OPTION...; without the caching allocator, which would hide what lies beside a small tensor
  when_cut=cut run "sanitizer-$1" 40 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --error-exitcode 1 --tool "$@" \
    "${pytest[@]}" tests/gpu/test_gpu.py -k "layouts and (contiguous or offset)"
}

pytest=(python3 -m pytest -vv -m gpu --maxfail=15 --tb=short -o faulthandler_timeout=60)
benchmarks=(python3 -m pytest --device cuda --seconds 1 --show-capture=no --tb=short
  --benchmark-columns=min,median,iqr,rounds)
backends='from mtadam_fused.__main__ import report, statuses
print(report())
assert all(statuses()[name].usable for name in ("cuda", "triton")), "not all backends are usable"'
context='import ctypes
cuda, found = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()
assert cuda.cuInit(0) == cuda.cuDevicePrimaryCtxRetain(ctypes.byref(found), 0) == 0'
first='layouts or graph or one_launch'  # what is most likely to fail on a GPU

timeout --kill-after=5 10 nvidia-smi --query-gpu=name,driver_version --format=csv,noheader >"$out/table.txt" 2>&1
run build 240 python3 -m pip install -v --disable-pip-version-check --no-deps --no-build-isolation --editable .
run build-report 40 python3 -c "$backends"
run cuda-first 60 "${pytest[@]}" tests/gpu/test_gpu.py -k "not triton and ($first)"
when_cut=cut run cuda-counters 45 python3 -m bench.tuning.counters  # alone on the GPU
set -m  # else what runs in the background does not hear SIGINT
test_backend cuda "not triton" "not triton and not ($first)" &
test_backend triton triton triton &
wait
set +m
left=$((end - 80 - 45 - SECONDS))  # all but what the sanitizer and the sweep should have
when_cut=cut run benchmarks "$left" "${benchmarks[@]}" bench/speed --within $((left - 30)) --compile-seconds 0 --record "$out"
if timeout --kill-after=5 20 compute-sanitizer --error-exitcode 1 python3 -c "$context" >"$out/sanitizer.log" 2>&1; then
  sanitize memcheck --report-api-errors no  # libraries provoke some on purpose
  sanitize racecheck
else
  say sanitizer refused 0 "$(tail -n 1 "$out/sanitizer.log")"
fi
spare benchmarks-sweep 30 python3 -m bench.tuning.sweep --within $((end - 15 - SECONDS))
spare benchmarks-compiled 60 "${benchmarks[@]}" bench/speed/test_step.py -k "equal_100m-K4 or mnist-K10" --within 15 \
  --compile-seconds 50
rm -f "$out"/*/*.part  # of a record whose writing was cut short
failed=$(grep -c ' FAILED ' "$out/table.txt")
for name in cuda-counters benchmarks-sweep; do
  printed "$name" >>"$out/table.txt"
done
for records in "$out"/*/benchmarks.json; do
  timeout --kill-after=5 20 python3 -m bench.report.tables "$records" >>"$out/table.txt" 2>&1
done
cat "$out/table.txt"
exit $((failed > 0))
