#!/usr/bin/env bash
# Everything that needs a GPU, in under 9 minutes: build, tests, compute-sanitizer, benchmarks.
#
#   bench/gpu/run_all.sh [--dry-run] [PART...]
#
# Without names of parts, all of them. To $OUT go kernels.json, models_*.json with a chart beside each, and log.txt:
# few files. A part that fails is noted and the next one runs; each has a limit of its own, and what the others left
# over goes to the models, which come last. --dry-run: on a CPU with small shapes, for which the package must be
# installed.
set -u
cd "$(dirname "$0")/../.."
OUT=${OUT:-build/gpu_results}
mkdir -p "$OUT"
export OUT PYTHON=${PYTHON:-python3}
# ninja and cmake may lie beside a Python that is not activated, nvcc and compute-sanitizer where CUDA is
PATH="$PATH:$(dirname "$(command -v "$PYTHON")"):/usr/local/cuda/bin"
export PYTHONPATH="$PWD:$PWD/python_tests${PYTHONPATH:+:$PYTHONPATH}"
TOTAL=530
dry=
[ "${1:-}" = --dry-run ] && dry=--dry-run && shift
wanted=" $* "
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
: >"$OUT/log.txt"
summary=()
failed=0

part() { # part <name> <seconds> <command...>
  local name=$1 limit=$2 start=$SECONDS status said=ok
  shift 2
  [ "$wanted" = "  " ] || [[ $wanted == *" $name "* ]] || return 0
  timeout -k 2 "$limit" bash -c '"$@"' _ "$@" >"$logs/$name" 2>&1
  status=$?
  { echo "=== $name" && cat "$logs/$name"; } >>"$OUT/log.txt"
  if [ $status -ne 0 ]; then
    failed=1
    said="FAILED ($status), see log.txt"
    tail -n 25 "$logs/$name"
  fi
  summary+=("$(printf '%-12s %4d of %3d s  %s' "$name" $((SECONDS - start)) "$limit" "$said")")
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

kernels() { "$PYTHON" bench/gpu/kernels.py --out "$OUT/kernels.json" "$@"; }

models() { # models <name> <seconds> <option...>
  local name=$1 seconds=$2
  shift 2
  "$PYTHON" bench/gpu/models.py "$name" --out "$OUT/models_$name.json" --seconds "$seconds" "$@"
}

# share <percent>: of the seconds that are left
share() { echo $(((TOTAL - SECONDS) * $1 / 100)); }

# Starting Python and drawing take time, too.
models_part() { # models_part <name> <seconds> <option...>
  local name=$1 seconds=$2
  shift 2
  part "models_$name" "$seconds" models "$name" $((seconds - 18)) "$@"
}

export -f build tests sanitize kernels models
loop="python_tests/test_device_loop.py::test_on_a_gpu"
if [ -n "$dry" ]; then
  part loop 60 tests $loop
  part engine 100 tests python_tests/test_device_engine.py -k "cpu and qwen3 and block_causal"
  part ops 100 tests python_tests/test_device_ops.py -k "small and cpu"
  part kernels 100 kernels $dry
  models_part 8B 100 $dry
  models_part 1.5B 100 $dry
else
  part machine 10 nvidia-smi
  part build 120 build
  part loop 15 tests $loop
  part engine 50 tests python_tests/test_device_engine.py
  part ops 40 tests python_tests/test_device_ops.py -k cuda
  part kernels 40 kernels --seconds 22
  part memcheck 45 sanitize memcheck
  part racecheck 35 sanitize racecheck
  models_part 8B "$(share 45)"
  models_part 4B "$(share 55)"
  models_part 1.5B "$(share 100)"
fi

for name in kernels models_8B models_4B models_1.5B; do
  [ -f "$logs/$name" ] && echo "--- $name" && grep -v profiler_st "$logs/$name"
done
printf '%s\n' "${summary[@]}" | tee -a "$OUT/log.txt"
exit $failed
