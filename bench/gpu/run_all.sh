#!/usr/bin/env bash
# Everything that needs a GPU, in under 9 minutes: build, tests, compute-sanitizer, benchmarks. Logs and JSON go to
# $OUT; a part that fails is noted and the next one runs. --dry-run: the same on a CPU with small shapes, for which the
# package must be installed.
set -u
cd "$(dirname "$0")/../.."
OUT=${OUT:-build/gpu_results}
mkdir -p "$OUT"
export PYTHON=${PYTHON:-python3}
# ninja and cmake may lie beside a Python that is not activated, nvcc and compute-sanitizer where CUDA is
PATH="$PATH:$(dirname "$(command -v "$PYTHON")"):/usr/local/cuda/bin"
export PYTHONPATH="$PWD:$PWD/python_tests${PYTHONPATH:+:$PYTHONPATH}"
dry=${1:-}
summary=()
failed=0

part() { # part <name> <seconds> <command...>
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  timeout "$limit" bash -c '"$@"' _ "$@" >"$OUT/$name.log" 2>&1
  status=$?
  [ $status -eq 0 ] || failed=1
  summary+=("$(printf '%-12s %4d s  %s' "$name" $((SECONDS - start)) "$([ $status -eq 0 ] && echo ok || echo "FAILED ($status), see $name.log")")")
  [ $status -eq 0 ] || tail -n 25 "$OUT/$name.log"
}

build() {
  local gpu
  gpu=$("$PYTHON" -c 'import torch; print("%d%d-real" % torch.cuda.get_device_capability())') &&
    cmake -S . -B build/gpu -G Ninja -DEDLM_CUDA=ON -DEDLM_CUDA_ARCHITECTURES="$gpu" \
    -DPython3_EXECUTABLE="$(command -v "$PYTHON")" -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/edlm_engine" &&
    cmake --build build/gpu
}

tests() { "$PYTHON" -m pytest -o addopts= -q -rs "$@"; }

# sanitize <tool>: a few small cases of every op, since each runs some hundred times slower. Without torch's cache
# every tensor is an allocation of its own, so that a read past its end is one past an allocation's.
sanitize() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" --error-exitcode 9 --launch-timeout 0 \
    "$PYTHON" -m pytest -o addopts= -q python_tests/test_device_ops.py -k "small and cuda"
}

export -f build tests sanitize
if [ "$dry" = --dry-run ]; then
  part ops 200 tests python_tests/test_device_ops.py -k "small and cpu"
  part kernels 200 "$PYTHON" bench/gpu/kernels.py --dry-run --out "$OUT/kernels.json"
else
  part machine 15 nvidia-smi
  part build 120 build
  part ops 60 tests python_tests/test_device_ops.py -k cuda
  part engine 60 tests python_tests/test_device_engine.py
  part kernels 150 "$PYTHON" bench/gpu/kernels.py --out "$OUT/kernels.json" --seconds 110
  part memcheck 70 sanitize memcheck
  part racecheck 60 sanitize racecheck
fi

[ -f "$OUT/kernels.log" ] && cat "$OUT/kernels.log"
printf '%s\n' "${summary[@]}" | tee "$OUT/summary.txt"
exit $failed
