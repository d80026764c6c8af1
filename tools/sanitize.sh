#!/usr/bin/env bash
# Runs the operators' tests on a native core with AddressSanitizer and UndefinedBehaviorSanitizer, built in
# build/sanitize beside the normal one. The first report ends the run. Called by `make sanitize`.
#
# ThreadSanitizer is left out: libgomp is not instrumented, so that it would report every parallel region.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
build=build/sanitize
site=$PWD/$build/site

cmake=$("$python" -c 'import cmake, pathlib; print(pathlib.Path(cmake.CMAKE_BIN_DIR) / "cmake")')
ninja=$("$python" -c 'import ninja, pathlib; print(pathlib.Path(ninja.BIN_DIR) / "ninja")')
# a Release build would be stripped, and its reports would name no lines
"$cmake" -S . -B "$build" -G Ninja -DCMAKE_MAKE_PROGRAM="$ninja" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCORTEX_FAST_SANITIZE=ON \
  -DPython_EXECUTABLE="$(command -v "$python")" -Dpybind11_DIR="$("$python" -m pybind11 --cmakedir)" \
  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY="$PWD/$build/out"
"$cmake" --build "$build" --target _native

# a package of links to this one, with the sanitised native module
rm -rf "$site"
mkdir -p "$site/cortex_fast"
for entry in cortex_fast/*; do
  case $entry in
    */_native*.so | */__pycache__) ;;
    *) ln -s "$PWD/$entry" "$site/cortex_fast/" ;;
  esac
done
cp "$build"/out/_native*.so "$site/cortex_fast/"

compiler=${CXX:-c++}
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so):$("$compiler" -print-file-name=libubsan.so)"
# Leak reports concern the interpreter. Fresh memory is filled with NaN, which exposes reads of unwritten scratch.
export ASAN_OPTIONS=detect_leaks=0:max_malloc_fill_size=1073741824:malloc_fill_byte=255
export UBSAN_OPTIONS=print_stacktrace=1
export PYTHONPATH="$site"
"$python" - <<'CHECK'
import sys

sys.path.remove("")  # this folder's package would come first
from cortex_fast import _native

assert "build/sanitize" in _native.__file__, f"the tests would run {_native.__file__}, which is not the sanitised core"
assert "-fsanitize=address,undefined" in _native.build_info()["flags"], _native.build_info()["flags"]
CHECK
# Tests of tracing and compiling are left out: that code is torch's, and slow under the sanitizers. The sanitizers write to
# the process's standard error; by default pytest captures it and loses it if the process dies, hence --capture=sys.
exec "$(dirname "$python")/pytest" -q --capture=sys -p no:cacheprovider -o "pythonpath=$site ." tests/ops -k "not compile and not opcheck" "$@"
