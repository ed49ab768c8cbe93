/* Tests of the runtime for CUDA on the emulated driver, for sanitizers: loading and unloading, calls with host and device memory, graphs,
 * failures at every call of the driver, several threads at once, and a lost device. Usage: test_cuda IMAGE, the library of
 * cuda_image.c; the emulated driver is the libcuda.so.1 that the process finds. */
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "../cuda.h"

namespace {

#define REQUIRE(condition)                                                                          \
  do {                                                                                              \
    if (!(condition)) {                                                                             \
      std::fprintf(stderr, "test_cuda: line %d: not so: %s; %s\n", __LINE__, #condition, error_text); \
      std::exit(1);                                                                                 \
    }                                                                                               \
  } while (false)

thread_local char error_text[2048];

tw_context make_context() {
  tw_context context;
  std::memset(&context, 0, sizeof context);
  context.abi_version = TW_ABI_VERSION;
  context.error = error_text;
  context.error_capacity = sizeof error_text;
  error_text[0] = 0;
  return context;
}

/* The model: y = 4 * x by two launches through the workspace; as `crashing` its kernels fail. */
int32_t plan(const int64_t *shapes, int64_t *output_shapes, int64_t *workspace_bytes, int64_t *, int64_t *) {
  output_shapes[0] = shapes[0];
  *workspace_bytes = shapes[0] * 4;
  return TW_OK;
}

int32_t launch_twice(tw_team *team, const void *from, void *to, int64_t n) {
  tw_cuda_team *device = reinterpret_cast<tw_cuda_team *>(team);
  void *none = nullptr;
  void *arguments[] = {&from, &to, none, &n};
  return device->launch(device, 0, (n + 63) / 64, arguments, 2);
}

int32_t run_thread(tw_team *team, const void *const *inputs, void *const *outputs, const int64_t *shapes, const uint8_t *, uint8_t *workspace,
                   int64_t, int64_t) {
  const int32_t status = launch_twice(team, inputs[0], workspace, shapes[0]);
  return status != TW_OK ? status : launch_twice(team, workspace, outputs[0], shapes[0]);
}

const int64_t open_dims[] = {-1};
const char *const dim_names[] = {"n"};
const tw_tensor_descriptor input = {"x", TW_FLOAT32, 1, open_dims, dim_names}, output = {"y", TW_FLOAT32, 1, open_dims, dim_names};
const char *const kernel_names[] = {"twice"}, *const sites[] = {"negative"};
const uint8_t segment[64] = {1, 2, 3};

struct Program {
  tw_model model;
  tw_cuda_image image;
  tw_cuda_kernel kernel;
  tw_cuda_program program;
};

std::vector<uint8_t> image_bytes;

void fill(Program *made, const char *kernel) {
  std::memset(made, 0, sizeof *made);
  tw_model &model = made->model;
  model.abi_version = TW_ABI_VERSION;
  model.name = kernel;
  model.target = "cuda:emulated";
  model.features = model.version = model.constants_digest = "";
  model.input_count = model.output_count = model.kernel_count = model.site_count = 1;
  model.inputs = &input;
  model.outputs = &output;
  model.constants_bytes = sizeof segment;
  model.kernel_names = kernel_names;
  model.sites = sites;
  model.plan = plan;
  model.thread = run_thread;
  model.static_workspace = -1;
  model.first_variant = &model;
  made->image = {"emulated", image_bytes.data(), (int64_t)image_bytes.size()};
  made->kernel = {kernel, 64, 0};
  made->program = {TW_CUDA_VERSION, 0, &made->model, &made->kernel, &made->image, 1, 0, ""};
}

void (*configure)(const char *);

int32_t call_host(tw_cuda_instance *instance, int64_t n, float sign) {
  std::vector<float> x((size_t)n + 1, sign), y((size_t)n + 1, 0.0f);
  const void *inputs[] = {x.data()};
  void *outputs[] = {y.data()};
  tw_context context = make_context();
  const int32_t status = tw_cuda_run_host(instance, &context, inputs, outputs, &n);
  for (int64_t i = 0; status == TW_OK && i < n; i++) REQUIRE(y[(size_t)i] == 4 * sign);
  return status;
}

tw_cuda_instance *load(const Program &program) {
  tw_cuda_instance *instance = nullptr;
  tw_context context = make_context();
  const int32_t status = tw_cuda_load(&program.program, &context, 0, segment, &instance);
  REQUIRE((status == TW_OK) == (instance != nullptr));
  return instance;
}

void test_calls(const Program &program) {
  tw_cuda_instance *instance = load(program);
  REQUIRE(instance != nullptr);
  for (int round = 0; round < 3; round++)
    for (int64_t n : {1, 1000, 0, 3000000, 17}) REQUIRE(call_host(instance, n, 1.5f) == TW_OK);
  for (int64_t n = 1; n < 60; n++) REQUIRE(call_host(instance, n, 1.0f) == TW_OK && call_host(instance, n, 2.0f) == TW_OK);
  REQUIRE(call_host(instance, 9, -1.0f) == TW_ERROR_INDEX && std::strstr(error_text, "negative: index 0") != nullptr);
  REQUIRE(call_host(instance, 9, 1.0f) == TW_OK);
  tw_cuda_unload(instance);
}

void test_device_memory(const Program &program) {
  tw_cuda_instance *instance = load(program);
  tw_context context = make_context();
  void *x = nullptr, *y = nullptr;
  int64_t n = 500, count = 0;
  std::vector<float> host((size_t)n, 3.0f), result((size_t)n, 0.0f);
  REQUIRE(tw_cuda_allocate(&context, 0, nullptr, n * 4, &x) == TW_OK && tw_cuda_allocate(&context, 0, nullptr, n * 4, &y) == TW_OK);
  REQUIRE(tw_cuda_copy_in(&context, 0, x, host.data(), n * 4, nullptr) == TW_OK);
  const void *inputs[] = {x};
  void *outputs[] = {y};
  for (int round = 0; round < 4; round++) REQUIRE(tw_cuda_run(instance, &context, inputs, outputs, &n, nullptr) == TW_OK);
  REQUIRE(tw_cuda_wait(instance, &context, nullptr) == TW_OK);
  REQUIRE(tw_cuda_copy_out(&context, 0, result.data(), y, n * 4, nullptr) == TW_OK && result[499] == 12.0f);
  double microseconds[1] = {0}, launches[3] = {0};
  REQUIRE(tw_cuda_profile(instance, &context, inputs, outputs, &n, nullptr, microseconds, launches, 1, &count) == TW_OK && count == 1);
  const void *late_inputs[] = {static_cast<const char *>(x) + 4};
  void *late_outputs[] = {static_cast<char *>(y) + 8};
  n = 100;
  REQUIRE(tw_cuda_run(instance, &context, late_inputs, outputs, &n, nullptr) == TW_ERROR_ARGUMENT);
  REQUIRE(std::strstr(error_text, "input x begins 4 bytes after a multiple of 16") != nullptr);
  REQUIRE(tw_cuda_profile(instance, &context, inputs, late_outputs, &n, nullptr, microseconds, launches, 1, &count) == TW_ERROR_ARGUMENT);
  REQUIRE(std::strstr(error_text, "output y begins 8 bytes after a multiple of 16") != nullptr);
  tw_cuda_release(0, x);
  tw_cuda_release(0, y);
  tw_cuda_unload(instance);
}

/* Each call of the driver fails once; whatever was taken is given back, and the next call works. */
void test_failures(const Program &program) {
  for (const char *function : {"cuModuleLoadDataEx", "cuModuleGetFunction", "cuStreamCreate", "cuMemAlloc_v2", "cuMemHostAlloc",
                               "cuMemcpyHtoDAsync_v2",
                               "cuMemcpyDtoHAsync_v2", "cuLaunchKernel", "cuStreamSynchronize", "cuStreamBeginCapture_v2", "cuStreamEndCapture",
                               "cuGraphInstantiateWithFlags", "cuGraphLaunch", "cuCtxPushCurrent_v2"}) {
    for (int after = 0; after < 4; after++) {
      configure((std::string("fail=") + function + ":" + std::to_string(after) + ":1").c_str());
      tw_cuda_instance *instance = load(program);
      for (int round = 0; round < 3 && instance != nullptr; round++) call_host(instance, 100, 1.0f);
      configure((std::string("fail=") + function + ":-1:0").c_str()); /* never, should it be pending */
      if (instance == nullptr) instance = load(program);
      REQUIRE(instance != nullptr);
      REQUIRE(call_host(instance, 100, 1.0f) == TW_OK);
      tw_cuda_unload(instance);
    }
  }
}

void test_threads(const Program &program) {
  tw_cuda_instance *shared = load(program);
  std::vector<std::thread> threads;
  for (int number = 0; number < 4; number++)
    threads.emplace_back([&, number] {
      tw_cuda_instance *own = load(program);
      for (int round = 0; round < 5; round++) REQUIRE(call_host(shared, 10 + number, 1.0f) == TW_OK && call_host(own, 20, 1.0f) == TW_OK);
      tw_cuda_unload(own);
    });
  for (std::thread &thread : threads) thread.join();
  tw_cuda_unload(shared);
}

void test_lost(const Program &program, const Program &crashing) {
  tw_cuda_instance *good = load(program), *bad = load(crashing);
  REQUIRE(call_host(bad, 5, 1.0f) == TW_ERROR_DEVICE_LOST && std::strstr(error_text, "as it was told") != nullptr);
  REQUIRE(call_host(good, 5, 1.0f) == TW_ERROR_DEVICE_LOST);
  tw_cuda_unload(bad);
  tw_cuda_unload(good);
  REQUIRE(load(program) == nullptr);
}

}  // namespace

int main(int count, char **words) {
  if (count != 2) return 2;
  std::FILE *file = std::fopen(words[1], "rb");
  REQUIRE(file != nullptr);
  for (int byte; (byte = std::fgetc(file)) != EOF;) image_bytes.push_back((uint8_t)byte);
  std::fclose(file);
  void *driver = dlopen("libcuda.so.1", RTLD_NOW);
  REQUIRE(driver != nullptr);
  configure = reinterpret_cast<void (*)(const char *)>(dlsym(driver, "tw_emulated_configure"));
  REQUIRE(configure != nullptr);
  static Program twice, crash;
  fill(&twice, "twice");
  fill(&crash, "crash");
  test_calls(twice);
  test_device_memory(twice);
  test_failures(twice);
  test_threads(twice);
  test_lost(twice, crash);
  std::puts("test_cuda: passed");
  return 0;
}
