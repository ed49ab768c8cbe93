/* The self test: runs the golden call that a model carries and compares its outputs; format and tolerance in abi.h.
 *
 * The section is data from a file, so every offset in it is checked before use. No state, owns what it allocates for the
 * time of the call, safe from any thread. C library only.
 */
#include <stdlib.h>
#include <string.h>

#include "run.h"

namespace {

/* The parsed golden section. */
struct golden {
  const uint8_t *base;
  int64_t bytes;
  const int64_t *shapes;
  const int64_t *places; /* (offset, bytes) for every input, then every output */
};

double half_to_double(uint16_t bits) {
  int exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  double value;
  if (exponent == 31) return mantissa != 0 ? __builtin_nan("") : (bits & 0x8000 ? -__builtin_inf() : __builtin_inf());
  if (exponent == 0)
    value = mantissa * 0x1p-24;
  else
    value = (1024 + mantissa) * 0x1p-25 * (double)(1u << exponent); /* (1 + m/1024) * 2^(e-15) */
  return bits & 0x8000 ? -value : value;
}

double read_float(int32_t dtype, const uint8_t *data) {
  uint16_t half;
  uint32_t word;
  float single;
  double value;
  switch (dtype) {
    case TW_FLOAT16:
      memcpy(&half, data, 2);
      return half_to_double(half);
    case TW_BFLOAT16:
      memcpy(&half, data, 2);
      word = (uint32_t)half << 16;
      memcpy(&single, &word, 4);
      return single;
    case TW_FLOAT32:
      memcpy(&single, data, 4);
      return single;
    default:
      memcpy(&value, data, 8);
      return value;
  }
}

bool finite(double value) { return value - value == 0; }

/* Position of the first element that differs by more than the tolerance, or -1. */
int64_t find_difference(int32_t dtype, const uint8_t *found, const uint8_t *expected, int64_t bytes) {
  int64_t size = tw_dtype_bytes(dtype), count = bytes / size;
  if (dtype < TW_FLOAT16 || dtype > TW_FLOAT64) {
    for (int64_t index = 0; index < count; index++)
      if (memcmp(found + index * size, expected + index * size, (size_t)size) != 0) return index;
    return -1;
  }
  double largest = 0;
  for (int64_t index = 0; index < count; index++) {
    double value = read_float(dtype, expected + index * size);
    if (value < 0) value = -value;
    if (finite(value) && value > largest) largest = value;
  }
  double tolerance = largest * (dtype <= TW_BFLOAT16 ? 2e-2 : 1e-4);
  for (int64_t index = 0; index < count; index++) {
    double a = read_float(dtype, found + index * size), b = read_float(dtype, expected + index * size);
    if (a == b || (a != a && b != b)) continue;
    double difference = a < b ? b - a : a - b;
    if (!finite(a) || !finite(b) || !(difference <= tolerance)) return index;
  }
  return -1;
}

bool parse_golden(const tw_model *model, const uint8_t *constants, golden *result) {
  int64_t offset = model->golden_offset, bytes = model->golden_bytes;
  if (offset < 0 || bytes < 16 || offset % 64 != 0 || bytes > model->constants_bytes - offset) return false;
  const uint8_t *base = constants + offset;
  const int64_t *words = (const int64_t *)base;
  int64_t dims = 0, places = 2 * ((int64_t)model->input_count + model->output_count);
  for (int32_t index = 0; index < model->input_count; index++) dims += model->inputs[index].rank;
  if (words[0] != TW_GOLDEN_MAGIC || words[1] != dims || (2 + dims + places) * 8 > bytes) return false;
  for (int64_t index = 0; index < places; index += 2) {
    int64_t start = words[2 + dims + index], length = words[2 + dims + index + 1];
    if (start < 0 || length < 0 || start % 64 != 0 || start > bytes || length > bytes - start) return false;
  }
  result->base = base;
  result->bytes = bytes;
  result->shapes = words + 2;
  result->places = words + 2 + dims;
  return true;
}

/* Bytes of a tensor, or -1 when a dim is negative or the product overflows. */
int64_t tensor_bytes(const tw_tensor_descriptor *tensor, const int64_t *dims) {
  int64_t bytes = tw_dtype_bytes(tensor->dtype);
  for (int32_t axis = 0; axis < tensor->rank; axis++)
    if (dims[axis] < 0 || __builtin_mul_overflow(bytes, dims[axis], &bytes)) return -1;
  return bytes;
}

bool sizes_agree(const tw_tensor_descriptor *tensors, int32_t count, const int64_t *dims, const int64_t *places) {
  for (int32_t index = 0; index < count; index++) {
    if (tensor_bytes(&tensors[index], dims) != places[2 * index + 1]) return false;
    dims += tensors[index].rank;
  }
  return true;
}

/* Runs and compares with buffers that `outputs` (zeroed) receives; the caller frees them. */
int32_t run_golden(const tw_model *model, const tw_context *context, const uint8_t *constants, const golden *test,
                   const void **inputs, void **outputs) {
  const int64_t *output_places = test->places + 2 * model->input_count;
  for (int32_t index = 0; index < model->input_count; index++) inputs[index] = test->base + test->places[2 * index];
  for (int32_t index = 0; index < model->output_count; index++)
    if (posix_memalign(&outputs[index], 64, (size_t)output_places[2 * index + 1] + 1) != 0) {
      outputs[index] = nullptr;
      return tw_report(context, TW_ERROR_MEMORY, "%s: selftest: no memory for output %d", model->name, index);
    }
  int32_t status = tw_run_model(model, context, inputs, outputs, test->shapes, constants, nullptr);
  for (int32_t index = 0; status == TW_OK && index < model->output_count; index++) {
    const tw_tensor_descriptor *output = &model->outputs[index];
    int64_t where = find_difference(output->dtype, (const uint8_t *)outputs[index], test->base + output_places[2 * index],
                                    output_places[2 * index + 1]);
    if (where >= 0)
      status = tw_report(context, TW_ERROR_ASSERT, "%s: selftest: output '%s' differs from the recorded one at element %lld",
                         model->name, output->name, (long long)where);
  }
  return status;
}

}  // namespace

extern "C" int32_t tw_selftest_model(const tw_model *model, const tw_context *context, const uint8_t *constants) {
  int32_t status = tw_choose_variant(&model, context);
  if (status != TW_OK) return status;
  if (model->golden_bytes == 0) return tw_report(context, TW_OK, "%s: the model carries no recorded call to compare with", model->name);
  if (constants == nullptr) constants = model->constants;
  if (constants == nullptr) return tw_report(context, TW_ERROR_ARGUMENT, "%s: selftest needs the constants; open them first", model->name);
  golden test;
  if (!parse_golden(model, constants, &test)) return tw_report(context, TW_ERROR_FILE, "%s: the recorded call is damaged", model->name);
  int64_t dims = 0;
  for (int32_t index = 0; index < model->output_count; index++) dims += model->outputs[index].rank;
  size_t inputs = (size_t)model->input_count, outputs = (size_t)model->output_count;
  uint8_t *memory = (uint8_t *)calloc(inputs + outputs + (size_t)dims + 1, 8);
  if (memory == nullptr) return tw_report(context, TW_ERROR_MEMORY, "%s: selftest: no memory", model->name);
  void **output_list = (void **)(memory + inputs * 8);
  int64_t *output_dims = (int64_t *)(memory + (inputs + outputs) * 8);
  status = tw_plan_model(model, context, test.shapes, output_dims, nullptr);
  if (status == TW_OK && (!sizes_agree(model->inputs, model->input_count, test.shapes, test.places) ||
                          !sizes_agree(model->outputs, model->output_count, output_dims, test.places + 2 * inputs)))
    status = tw_report(context, TW_ERROR_FILE, "%s: the recorded call is damaged (sizes)", model->name);
  if (status == TW_OK) status = run_golden(model, context, constants, &test, (const void **)memory, output_list);
  for (size_t index = 0; index < outputs; index++) free(output_list[index]);
  free(memory);
  return status;
}
