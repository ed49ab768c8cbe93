"""A program for one choice of sizes as a .cu file that checks itself: device header, kernels, and a `main` that runs them once.

`main` reads inputs, constants and expected results from a file beside it, launches the kernels in their order, and compares. It uses the
runtime interface of CUDA and nothing of ours: `nvcc OPTIONS -o model model.cu && ./model`, with the options that come with it.

Assumes that all sizes are bound. Guarantees that equal programs and arrays give equal files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from msgspec import Struct

from tilewright.backends.cuda.compile import OPTIONS
from tilewright.backends.cuda.emit_scalars import memory_type
from tilewright.backends.cuda.emit_sizes import ATOM, Text, emit_size
from tilewright.backends.cuda.module import CudaModule
from tilewright.ir.dims import DimLike, Symbol, substitute
from tilewright.ir.program import Branch, Launch, Loop, Place, Program, Repeat, Step
from tilewright.ir.types import DType

FOLDER = Path(__file__).resolve().parent
ALIGNMENT = 256
TOLERANCES = {"f64": 1e-9, "f32": 1e-3, "f16": 2e-2, "bf16": 5e-2}


class Standalone(Struct, frozen=True):
    """The text of the .cu file, the bytes of the file beside it, and how nvcc compiles it."""

    source: str
    data: bytes
    options: tuple[str, ...]


def nvcc_options(architecture: str) -> tuple[str, ...]:
    """For one architecture ('sm_90a') where it alone has some instructions, else for it and all later ones ('sm_80'). `-arch=sm_90a`
    would compile for plain sm_90 as well, at least with CUDA 13.0."""
    compute = architecture.replace("sm_", "compute_")
    return (*OPTIONS, "-gencode", f"arch={compute},code={architecture if architecture.endswith('a') else compute}")


def make_standalone(program: Program, module: CudaModule, sizes: Mapping[str, int], inputs: Sequence[np.ndarray],
                    outputs: Sequence[np.ndarray], data_name: str, architecture: str) -> Standalone:
    """`sizes` binds the program's symbols as the inputs do; `outputs` are the expected results; `architecture`: as 'sm_90a'."""
    arrays = [*inputs, *outputs]
    constants = np.zeros(program.constants_bytes, np.uint8)
    for offset, constant in program.constants:
        raw = constant.array.reshape(-1).view(np.uint8)
        constants[offset:offset + raw.size] = raw
    parts, offsets, position = [], [], 0
    for array in [constants, *arrays]:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        offsets.append((position, raw.size))
        parts.append(raw.tobytes() + b"\0" * (-raw.size % ALIGNMENT))
        position += len(parts[-1])
    writer = _Main(program, module, sizes)
    body = writer.main(offsets, position, data_name)
    kernels = module.source.replace('#include "device.h"\n', "")
    return Standalone("\n".join([_header(), kernels, body]), b"".join(parts), nvcc_options(architecture))


def _header() -> str:
    """The device header in one piece, without what it is for the host's emulation."""
    whole = (FOLDER / "device.h").read_text(encoding="utf-8")
    for part in ("device_hopper.h", "device_scalars.h"):
        whole = whole.replace(f'#include "{part}"\n', (FOLDER / part).read_text(encoding="utf-8"))
    whole = whole.replace("#pragma once\n", "")
    return "#pragma nv_diag_suppress 177  // the header has more functions than kernels call\n" + whole


class _Main:
    """Writes `main`."""

    def __init__(self, program: Program, module: CudaModule, sizes: Mapping[str, int]) -> None:
        self.program, self.module = program, module
        self.sizes: dict[str, DimLike] = dict(sizes)
        self.lines: list[str] = []
        self.indent = 1

    def emit(self, line: str) -> None:
        self.lines.append("  " * self.indent + line)

    def size(self, size: DimLike) -> str:
        """A size as C++: a number, but for the rounds of a loop."""
        return emit_size(substitute(size, self.sizes), lambda symbol: Text(symbol.name, ATOM, True)).text

    def main(self, offsets: Sequence[tuple[int, int]], total: int, data_name: str) -> str:
        count = len(self.program.inputs)
        self.emit(f"char *data = read_file(\"{data_name}\", {total});")
        self.emit(f"char *constants = on_device(data, {max(1, offsets[0][1])});")
        self.emit(f"char *workspace = on_device(nullptr, {self.size(self.program.workspace_bytes)} + 1);")
        self.emit("tw_failure *failure = (tw_failure *)on_device(nullptr, sizeof(tw_failure));")
        for number, (start, size) in enumerate(offsets[1:1 + count]):
            self.emit(f"char *input{number} = on_device(data + {start}, {size});  // {self.program.inputs[number][0]}"[:120])
        for number, (_, size) in enumerate(offsets[1 + count:]):
            self.emit(f"char *output{number} = on_device(nullptr, {size});  // {self.program.outputs[number][0]}"[:120])
        self.steps(self.program.steps)
        self.emit("must(cudaDeviceSynchronize());")
        self.emit("int wrong = failed(failure);")
        for number, ((start, size), (_, type)) in enumerate(zip(offsets[1 + count:], self.program.outputs)):
            self.emit(f"wrong += {_compare(type.dtype)}(\"output {number}\", output{number}, data + {start}, {size // type.dtype.bytes}, "
                      f"{TOLERANCES.get(type.dtype.name, 0)});")
        self.emit('printf(wrong ? "FAILED\\n" : "passed\\n");')
        self.emit("return wrong != 0;")
        return "\n".join([_HELPERS, "int main() {", *self.lines, "}"]) + "\n"

    def steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case Launch():
                    self.launch(step)
                case Repeat(symbol=symbol, extent=extent, steps=body, reverse=reverse):
                    self.repeat(symbol, self.size(extent), body, reverse)
                case Loop(condition_steps=first, condition=condition, steps=body):
                    self.emit("while (true) {")
                    self.indent += 1
                    self.steps(first)
                    self.emit(f"if (!truth({self.place(condition)})) break;")
                    self.steps(body)
                    self.indent -= 1
                    self.emit("}")
                case Branch(condition=condition, then=then, otherwise=otherwise):
                    self.block(f"if (truth({self.place(condition)})) {{", then)
                    if otherwise:
                        self.block("else {", otherwise)

    def block(self, head: str, steps: Sequence[Step]) -> None:
        self.emit(head)
        self.indent += 1
        self.steps(steps)
        self.indent -= 1
        self.emit("}")

    def repeat(self, symbol: Symbol, extent: str, steps: Sequence[Step], reverse: bool) -> None:
        name = symbol.name
        head = f"for (long long {name} = {extent} - 1; {name} >= 0; --{name}) {{" if reverse else \
            f"for (long long {name} = 0; {name} < {extent}; ++{name}) {{"
        self.block(head, steps)

    def place(self, place: Place) -> str:
        base = {"input": f"input{place.number}", "output": f"output{place.number}", "constant": "constants",
                "workspace": "workspace"}[place.space]
        return base if place.offset == 0 else f"{base} + {self.size(place.offset)}"

    def launch(self, launch: Launch) -> None:
        made = self.module.kernels[id(launch.kernel)]
        own = {s.name: substitute(n, self.sizes) for s, n in zip(launch.kernel.symbols, launch.sizes)}
        grid = substitute(made.grid, own)
        if grid == 0:
            return
        arguments = []
        for buffer, place in zip(launch.kernel.buffers, launch.places):
            arguments.append(f"({'const ' if buffer.space == 'in' else ''}{memory_type(buffer.dtype)} *)({self.place(place)})")
        arguments += ["failure"] if made.fails else []
        arguments += [self.size(n) for n in own.values()]
        if made.shared_bytes:
            self.emit(f"must(cudaFuncSetAttribute({made.name}, cudaFuncAttributeMaxDynamicSharedMemorySize, {made.shared_bytes}));")
        self.emit(f"{made.name}<<<{self.size(grid)}, {made.threads}, {made.shared_bytes}>>>(")
        for position, argument in enumerate(arguments):
            self.emit(f"    {argument}{');' if position == len(arguments) - 1 else ','}")
        if not arguments:
            self.lines[-1] += ");"
        self.emit("must(cudaGetLastError());")


def _compare(dtype: DType) -> str:
    names = {"f64": "compare_double", "f32": "compare_float", "f16": "compare_float16", "bf16": "compare_bfloat16"}
    return names.get(dtype.name, f"compare_bytes<{dtype.bytes}>")


_HELPERS = '''\
// --- what runs and checks the kernels ---

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static void must(cudaError_t status) {
  if (status != cudaSuccess) {
    printf("CUDA: %s\\n", cudaGetErrorString(status));
    exit(2);
  }
}

static char *read_file(const char *name, size_t bytes) {
  FILE *file = fopen(name, "rb");
  char *data = (char *)malloc(bytes + 1);
  if (!file || fread(data, 1, bytes, file) != bytes) {
    printf("%s cannot be read\\n", name);
    exit(2);
  }
  fclose(file);
  return data;
}

static char *on_device(const char *data, size_t bytes) {
  char *memory = nullptr;
  must(cudaMalloc((void **)&memory, bytes + 1));
  must(cudaMemset(memory, 0, bytes + 1));
  if (data) must(cudaMemcpy(memory, data, bytes, cudaMemcpyHostToDevice));
  return memory;
}

static bool truth(const char *place) {
  char value = 0;
  must(cudaMemcpy(&value, place, 1, cudaMemcpyDeviceToHost));
  return value != 0;
}

static int failed(const tw_failure *failure) {
  tw_failure found;
  must(cudaMemcpy(&found, failure, sizeof(found), cudaMemcpyDeviceToHost));
  if (found.code) printf("a check failed: site %d, found %lld, expected %lld\\n", found.site, found.found, found.expected);
  return found.code != 0;
}

static double half_value(unsigned short bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double size = exponent == 31 ? (fraction ? NAN : INFINITY)
                      : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                     : ldexp(fraction, -24);
  return bits >> 15 ? -size : size;
}

static double brain_value(unsigned short bits) {
  const unsigned word = (unsigned)bits << 16;
  float value;
  memcpy(&value, &word, 4);
  return value;
}

template <typename T, double value(T)> static int compare(const char *label, const char *device, const char *expected, size_t count,
                                                          double tolerance) {
  T *found = (T *)malloc(count * sizeof(T) + 1);
  must(cudaMemcpy(found, device, count * sizeof(T), cudaMemcpyDeviceToHost));
  for (size_t i = 0; i < count; ++i) {
    T bits;
    memcpy(&bits, expected + i * sizeof(T), sizeof(T));
    const double a = value(found[i]), b = value(bits);
    if (a == b || (std::isnan(a) && std::isnan(b)) || std::fabs(a - b) <= tolerance * (1 + std::fabs(b))) continue;
    printf("%s: element %zu is %g, expected %g\\n", label, i, a, b);
    return 1;
  }
  free(found);
  return 0;
}

static double of_float(float x) { return x; }
static double of_double(double x) { return x; }
#define COMPARE(name, type, value) \\
  static int name(const char *label, const char *device, const char *expected, size_t count, double tolerance) { \\
    return compare<type, value>(label, device, expected, count, tolerance); \\
  }
COMPARE(compare_float, float, of_float)
COMPARE(compare_double, double, of_double)
COMPARE(compare_float16, unsigned short, half_value)
COMPARE(compare_bfloat16, unsigned short, brain_value)

template <int width> static int compare_bytes(const char *label, const char *device, const char *expected, size_t count, double) {
  char *found = (char *)malloc(count * width + 1);
  must(cudaMemcpy(found, device, count * width, cudaMemcpyDeviceToHost));
  const int wrong = memcmp(found, expected, count * width) != 0;
  if (wrong) printf("%s differs\\n", label);
  free(found);
  return wrong;
}
'''
