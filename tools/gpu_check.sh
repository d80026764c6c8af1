#!/usr/bin/env bash
# Builds, tests and benchmarks everything on a machine with a GPU, in one command. Results go to $OUT (default:
# build/gpu_check). Uses the machine's torch, cmake, ninja and pybind11; downloads nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${OUT:-build/gpu_check}
python=${PYTHON:-python3}
mkdir -p "$out"

"$python" -c 'import torch; assert torch.cuda.is_available(), "torch sees no GPU here"'
"$python" -m pip install --quiet --no-build-isolation --no-deps --editable . 2>&1 | tee "$out/build.txt"
"$python" -m cortex_fast.cli info | tee "$out/info.txt"
nvidia-smi | tee "$out/nvidia-smi.txt"

# tests/ops runs compiled Triton kernels on GPU memory, unless this variable asks for the interpreter
unset TRITON_INTERPRET
"$python" -c 'from cortex_fast.kernels import triton; assert triton.unavailable() is None, triton.unavailable()'

# all steps run even if some fail, because the machine is lent for minutes; the exit status reports a failure
status=0
"$python" -m pytest tests/ops tests/engine tests/explain -q 2>&1 | tee "$out/tests.txt" || status=1
"$python" -m benchmarks --device cuda --write 2>&1 | tee "$out/benchmarks.txt" || status=1
# CUDA kernels under compute-sanitizer, which reports wrong memory accesses and races
if command -v compute-sanitizer > /dev/null; then
  compute-sanitizer --error-exitcode 1 "$python" -m pytest tests/ops/test_triton_on_gpu.py -q 2>&1 | tee "$out/sanitizer.txt" || status=1
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 1 "$python" -m tests.cuda.odd_shapes 2>&1 | tee "$out/$tool.txt" || status=1
  done
fi
if command -v ncu > /dev/null; then
  # each CUDA kernel's share of the memory bandwidth and of the matrix units' rate, at paper scale
  ncu --target-processes all --launch-count 40 --kernel-name-base function \
    --kernel-name "regex:noisy_copies|positions_inside|channels_inside|finish|select|scan|combine|terms|update|outer" \
    --metrics dram__throughput.avg.pct_of_peak_sustained_elapsed,sm__inst_executed_pipe_tensor.avg.pct_of_peak_sustained_active,gpu__time_duration.sum \
    "$python" -m benchmarks gumbel_codebook --device cuda 2>&1 | tee "$out/ncu.txt" || status=1
fi
"$python" -m benchmarks smoothgrad_paper --device cuda --write 2>&1 | tee -a "$out/benchmarks.txt" || status=1
for rows in 16 256 16000; do
  "$python" -m cortex_fast.cli tune --rows "$rows" 2>&1 | tee -a "$out/tune.txt" || status=1
done
cp benchmarks/results/*cuda*.json "$out/" 2>/dev/null || echo "no benchmark results were written"
exit $status
