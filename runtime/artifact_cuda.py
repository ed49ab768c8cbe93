"""The C header of an ahead-of-time library for CUDA, and the names that such a library exports.

    mlp.so        the host's code with the images of the kernels, and the runtime; opens the driver when a model is loaded
    mlp.h         C99 header: abi.h and cuda.h of the runtime, and the model's functions
    mlp.weights   constants, as of a library for a CPU (artifact.py)

Stateless; the same inputs give the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.runtime import _cuda, _native
from tilewright.runtime.artifact import describe_sizes
from tilewright.runtime.buffer import TensorInfo

PUBLIC_FUNCTIONS = ("describe", "plan", "open", "close", "load", "program", "unload", "run", "run_host", "wait")


def public_symbols(name: str) -> list[str]:
    """The symbols that a library for CUDA exports."""
    return [f"{name}_{function}" for function in PUBLIC_FUNCTIONS]


def make_cuda_header(name: str, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], *, version: str, constants_bytes: int,
                     workspace: int | None, summary: str) -> str:
    """The text of `<name>.h`."""
    device = _cuda.CUDA_HEADER.replace('#include "abi.h"\n', "").strip()
    return _HEADER.format(name=name, upper=name.upper(), version=version, abi=_native.ABI_HEADER.strip(), device=device, summary=summary,
                          constants=describe_sizes(name, inputs, outputs, constants_bytes, workspace), abi_version=_native.ABI_VERSION)


_HEADER = """\
/* {name}.h: C99 interface of the model {name} for CUDA devices, made by tilewright {version}, ABI version {abi_version}.
 * {summary}
 *
 * Link with -pthread (and -ldl where the C library is older than 2.34). Nothing of CUDA is needed to build: the driver is opened when
 * a model is loaded. Inputs and outputs on a device begin at multiples of 16 bytes. Every function that returns int32_t gives 0 or a
 * negative status (tw_status, tw_cuda_status) with a message in context->error. A minimal program (error handling left out):
 *
 *     char error[1024];
 *     tw_context context = {{TW_ABI_VERSION}};
 *     context.error = error; context.error_capacity = sizeof error;
 *     tw_constants constants;
 *     tw_cuda_instance *model;
 *     {name}_open(&context, NULL, &constants);
 *     {name}_load(&context, 0, constants.data, &model);
 *     {name}_close(&constants);
 *     {name}_run(model, &context, inputs_on_device, outputs_on_device, shapes, stream);
 *     {name}_wait(model, &context, stream);
 *     {name}_unload(model);
 */
{abi}

{device}

#ifndef TILEWRIGHT_MODEL_{upper}_H
#define TILEWRIGHT_MODEL_{upper}_H

{constants}

#ifdef __cplusplus
extern "C" {{
#endif

/* The model's description: name, inputs, outputs, kernels. Constant. */
const tw_model *{name}_describe(void);

/* Checks `shapes` (every dim of every input, in order), writes every dim of every output and the bytes of workspace, which calls
 * allocate on the device by themselves. */
int32_t {name}_plan(const tw_context *context, const int64_t *shapes, int64_t *output_shapes, int64_t *workspace_bytes);

/* Maps the constants: path null looks for {name}.weights beside the library. They are not needed once the model is loaded. */
int32_t {name}_open(const tw_context *context, const char *path, tw_constants *constants);
void {name}_close(tw_constants *constants);

/* Puts the model on a device, and ends it; see tw_cuda_load and tw_cuda_unload. {name}_program is what tw_cuda_load takes. */
int32_t {name}_load(const tw_context *context, int32_t device, const uint8_t *constants, tw_cuda_instance **instance);
void {name}_unload(tw_cuda_instance *instance);
const tw_cuda_program *{name}_program(void);

/* Calls; see tw_cuda_run, tw_cuda_run_host and tw_cuda_wait. */
int32_t {name}_run(tw_cuda_instance *instance, const tw_context *context, const void *const *inputs, void *const *outputs,
{pad}const int64_t *shapes, void *stream);
int32_t {name}_run_host(tw_cuda_instance *instance, const tw_context *context, const void *const *inputs, void *const *outputs,
{pad}     const int64_t *shapes);
int32_t {name}_wait(tw_cuda_instance *instance, const tw_context *context, void *stream);

#ifdef __cplusplus
}}
#endif
#endif
""".replace("{pad}", " " * 12)
