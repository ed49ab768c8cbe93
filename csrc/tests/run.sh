#!/bin/sh
# Builds the tests of csrc/ and runs them. Usage: csrc/tests/run.sh [address | undefined | thread | none]
# Sanitizers see csrc/ only; the model that the loader test runs is compiled without them, as generated code is.
set -eu
sanitizer=${1:-none}
root=$(CDPATH= cd -- "$(dirname -- "$0")/../.." && pwd)
build=$root/build/csrc-$sanitizer
cxx=${CXX:-c++}
cc=${CC:-cc}
case $sanitizer in
  address) flags="-fsanitize=address -fno-omit-frame-pointer" ;;
  undefined) flags="-fsanitize=undefined -fno-sanitize-recover=all" ;;
  thread) flags="-fsanitize=thread" ;;
  none) flags="" ;;
  *) echo "run.sh: found '$sanitizer', expected address, undefined, thread or none" >&2; exit 2 ;;
esac
mkdir -p "$build"
"$cc" -std=c99 -O1 -fPIC -fno-stack-protector -I"$root/csrc" -c "$root/tests/runtime_model/model.c" -o "$build/model.o"
# The runtime is compiled as it is shipped; only the driver uses the C++ library.
# shellcheck disable=SC2086  # flags are several words
"$cxx" -std=c++17 -O1 -g -Wall -Wextra -Werror -fno-exceptions -fno-rtti $flags -c "$root/csrc/runtime_object.cpp" -o "$build/runtime.o"
"$cxx" -std=c++17 -O1 -g -Wall -Wextra -Werror -fno-exceptions -fno-rtti $flags -c "$root/csrc/elf_loader.cpp" -o "$build/elf_loader.o"
"$cxx" -std=c++17 -O1 -g -Wall -Wextra -Werror $flags "$root/csrc/tests/test_runtime.cpp" "$build/runtime.o" "$build/elf_loader.o" -pthread -o "$build/test_runtime"
# A forked child of a program with threads starts threads of its own: thread sanitizer stops that unless told otherwise.
export TSAN_OPTIONS="die_after_fork=0 halt_on_error=1 ${TSAN_OPTIONS:-}"
export ASAN_OPTIONS="detect_stack_use_after_return=1 strict_string_checks=1 ${ASAN_OPTIONS:-}"
export UBSAN_OPTIONS="print_stacktrace=1 ${UBSAN_OPTIONS:-}"
"$build/test_runtime" "$build/model.o"
# The runtime for CUDA, on the emulated driver: it finds that one by its name.
"$cc" -std=c99 -O1 -fPIC -shared -I"$root/backends/cuda" "$root/csrc/tests/cuda_image.c" -o "$build/cuda_image.so"
# shellcheck disable=SC2086
"$cxx" -std=c++17 -O1 -g -fPIC -shared -fvisibility=hidden $flags "$root/backends/cuda/emulated_driver.cpp" -Wl,-soname,libcuda.so.1 -o "$build/libcuda.so.1"
# shellcheck disable=SC2086
"$cxx" -std=c++17 -O1 -g -Wall -Wextra -Werror -fno-exceptions -fno-rtti $flags -c "$root/csrc/cuda_object.cpp" -o "$build/cuda.o"
# shellcheck disable=SC2086
"$cxx" -std=c++17 -O1 -g -Wall -Wextra -Werror $flags "$root/csrc/tests/test_cuda.cpp" "$build/cuda.o" "$build/runtime.o" -pthread -ldl -o "$build/test_cuda"
LD_LIBRARY_PATH="$build" "$build/test_cuda" "$build/cuda_image.so"
# shellcheck disable=SC2086
"$cxx" -std=c++17 -O1 -g -Wall -Wextra -Werror $flags "$root/csrc/tests/test_packing.cpp" "$root"/csrc/solver/packing.cpp \
  "$root"/csrc/solver/search.cpp "$root"/csrc/solver/sections.cpp "$root"/csrc/solver/best_fit.cpp -pthread -o "$build/test_packing"
"$build/test_packing"
# shellcheck disable=SC2086
"$cxx" -std=c++17 -O1 -g -Wall -Wextra -Werror $flags "$root/csrc/tests/test_accelerator.cpp" "$root"/csrc/simulator/accelerator.cpp \
  "$root"/csrc/simulator/memory.cpp "$root"/csrc/simulator/timing.cpp "$root"/csrc/simulator/trap.cpp -pthread -o "$build/test_accelerator"
exec "$build/test_accelerator"
