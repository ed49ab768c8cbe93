/* Python bindings: tilewright.runtime._cuda. Bindings only: what runs a model on a device is in cuda_run.cpp.
 *
 * Addresses of device memory are numbers here, and arguments have been checked (runtime/cuda.py). An Instance keeps its Model alive,
 * which owns the code. The interpreter's lock is released while the driver works. Errors leave as the public classes of
 * tilewright.ir.errors. */
#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "bindings.h"
#include "cuda.h"
#include "cuda_dlpack.h"
#include "cuda_text.h"
#include "elf_loader.h"
#include "run.h"

namespace py = pybind11;
using bindings::address;
using bindings::raise;

namespace {

const size_t message_bytes = 2048;
const int64_t kept_launches = 1 << 16;

/* A context with room for a message, which `check` raises. */
class Reported {
 public:
  Reported() {
    std::memset(&context, 0, sizeof context);
    text_[0] = 0;
    context.abi_version = TW_ABI_VERSION;
    context.threads = 1;
    context.error = text_;
    context.error_capacity = sizeof text_;
  }
  Reported(const Reported &) = delete;
  Reported &operator=(const Reported &) = delete;

  void check(int32_t status) const {
    switch (status) {
      case TW_OK: return;
      case TW_ERROR_DRIVER: case TW_ERROR_DEVICE_LOST: raise("DeviceError", text_);
      default: bindings::raise_status(status, text_);
    }
  }

  tw_context context;

 private:
  char text_[message_bytes];
};

std::vector<void *> pointers_of(const std::vector<uint64_t> &addresses) {
  std::vector<void *> result;
  for (uint64_t address : addresses) result.push_back(reinterpret_cast<void *>(static_cast<uintptr_t>(address)));
  result.push_back(nullptr); /* never empty */
  return result;
}

/* A model's code in this process: an object that was compiled, or a library. On no device yet. */
class Model {
 public:
  Model() = default;
  Model(const Model &) = delete;
  Model &operator=(const Model &) = delete;
  ~Model() {
    if (library_ != nullptr) dlclose(library_);
  }

  static std::shared_ptr<Model> from_object(py::buffer object_code, const std::string &prefix) {
    auto result = std::make_shared<Model>();
    result->code_ = bindings::load_code(object_code, {
        {"tw_describe_model", address(tw_describe_model)}, {"tw_plan_model", address(tw_plan_model)},
        {"tw_open_model", address(tw_open_model)}, {"tw_close_model", address(tw_close_model)},
        {"tw_cuda_load", address(tw_cuda_load)}, {"tw_cuda_unload", address(tw_cuda_unload)}, {"tw_cuda_run", address(tw_cuda_run)},
        {"tw_cuda_run_host", address(tw_cuda_run_host)}, {"tw_cuda_wait", address(tw_cuda_wait)},
    });
    size_t size = 0;
    const void *place = tw_code_symbol(result->code_.get(), (prefix + "_cuda").c_str(), &size);
    if (place == nullptr || size < sizeof(tw_cuda_program)) raise("ArtifactError", "object code: it does not define '" + prefix + "_cuda'");
    result->adopt(static_cast<const tw_cuda_program *>(place));
    return result;
  }

  static std::shared_ptr<Model> from_library(const std::string &path, const std::string &symbol) {
    auto result = std::make_shared<Model>();
    result->library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (result->library_ == nullptr) raise("ArtifactError", "library '" + path + "': cannot be loaded: " + dlerror());
    void *place = dlsym(result->library_, symbol.c_str());
    if (place == nullptr)
      raise("ArtifactError", "library '" + path + "': it does not export '" + symbol + "'; is it a tilewright artifact for CUDA?");
    result->adopt(reinterpret_cast<const tw_cuda_program *(*)()>(place)());
    return result;
  }

  const tw_cuda_program *program() const { return program_; }
  const tw_model *model() const { return program_->model; }
  size_t code_bytes() const { return code_ == nullptr ? 0 : tw_code_bytes(code_.get()); }
  size_t input_dims() const { return input_dims_; }

  py::list architectures() const {
    py::list result;
    for (int32_t index = 0; index < program_->image_count; index++) result.append(program_->images[index].architecture);
    return result;
  }

  py::bytes image(const std::string &architecture) const {
    for (int32_t index = 0; index < program_->image_count; index++)
      if (architecture == program_->images[index].architecture)
        return py::bytes(reinterpret_cast<const char *>(program_->images[index].data), static_cast<size_t>(program_->images[index].bytes));
    raise("ArtifactError", std::string(model()->name) + ": no image for " + architecture);
  }

  /* All dims of the outputs in order, and the bytes of workspace. */
  py::tuple plan(const std::vector<int64_t> &dims) const {
    std::vector<int64_t> shapes = checked_dims(dims), output_dims(output_dims_ + 1);
    int64_t bytes = 0;
    Reported reported;
    reported.check(tw_plan_model(model(), &reported.context, shapes.data(), output_dims.data(), &bytes));
    output_dims.pop_back();
    return py::make_tuple(output_dims, bytes);
  }

  std::vector<int64_t> checked_dims(std::vector<int64_t> dims) const {
    if (dims.size() != input_dims_)
      raise("ArgumentError", std::string(model()->name) + ": found " + std::to_string(dims.size()) + " dims, expected " +
                                 std::to_string(input_dims_));
    dims.push_back(0);
    return dims;
  }

 private:
  void adopt(const tw_cuda_program *program) {
    if (program == nullptr || program->version != TW_CUDA_VERSION || program->model == nullptr || program->model->abi_version != TW_ABI_VERSION)
      raise("ArtifactError", "the artifact is for another version of the CUDA runtime; compile the model again with this version of tilewright");
    program_ = program;
    for (int32_t index = 0; index < model()->input_count; index++) input_dims_ += static_cast<size_t>(model()->inputs[index].rank);
    for (int32_t index = 0; index < model()->output_count; index++) output_dims_ += static_cast<size_t>(model()->outputs[index].rank);
  }

  bindings::loaded_code code_;
  void *library_ = nullptr;
  const tw_cuda_program *program_ = nullptr;
  size_t input_dims_ = 0, output_dims_ = 0;
};

/* A model on a device. */
class Instance {
 public:
  Instance(std::shared_ptr<Model> model, int32_t device, py::object constants) : model_(std::move(model)) {
    const uint8_t *data = nullptr;
    py::buffer_info info;
    if (!constants.is_none()) {
      info = py::buffer(constants).request();
      const int64_t bytes = info.size * info.itemsize;
      if (bytes != model_->model()->constants_bytes)
        raise("ArtifactError", std::string(model_->model()->name) + ": found constants of " + std::to_string(bytes) + " bytes, expected " +
                                   std::to_string(model_->model()->constants_bytes));
      data = static_cast<const uint8_t *>(info.ptr);
    }
    Reported reported;
    int32_t status;
    {
      py::gil_scoped_release release;
      status = tw_cuda_load(model_->program(), &reported.context, device, data, &instance_);
    }
    reported.check(status);
  }
  Instance(const Instance &) = delete;
  Instance &operator=(const Instance &) = delete;
  ~Instance() {
    py::gil_scoped_release release;
    tw_cuda_unload(instance_);
  }

  void run(const std::vector<uint64_t> &inputs, const std::vector<uint64_t> &outputs, const std::vector<int64_t> &dims, uint64_t stream) {
    const std::vector<void *> given = pointers_of(inputs), results = pointers_of(outputs);
    const std::vector<int64_t> shapes = model_->checked_dims(dims);
    call([&](const tw_context *context) {
      return tw_cuda_run(instance_, context, given.data(), results.data(), shapes.data(), stream_of(stream));
    });
  }

  /* Arrays that were checked: contiguous, of the right dtype and shape. */
  void run_host(const std::vector<py::array> &inputs, const std::vector<py::array> &outputs, const std::vector<int64_t> &dims) {
    std::vector<const void *> given;
    std::vector<void *> results;
    for (const py::array &array : inputs) given.push_back(array.data());
    for (const py::array &array : outputs) results.push_back(const_cast<void *>(array.data()));
    given.push_back(nullptr);
    results.push_back(nullptr);
    const std::vector<int64_t> shapes = model_->checked_dims(dims);
    call([&](const tw_context *context) { return tw_cuda_run_host(instance_, context, given.data(), results.data(), shapes.data()); });
  }

  void wait(uint64_t stream) {
    call([&](const tw_context *context) { return tw_cuda_wait(instance_, context, stream_of(stream)); });
  }

  /* [(kernel, start, end)] of the launches, in microseconds. */
  py::list profile(const std::vector<uint64_t> &inputs, const std::vector<uint64_t> &outputs, const std::vector<int64_t> &dims, uint64_t stream) {
    const std::vector<void *> given = pointers_of(inputs), results = pointers_of(outputs);
    const std::vector<int64_t> shapes = model_->checked_dims(dims);
    std::vector<double> microseconds(static_cast<size_t>(model_->model()->kernel_count) + 1), launches(static_cast<size_t>(kept_launches) * 3);
    int64_t count = 0;
    call([&](const tw_context *context) {
      return tw_cuda_profile(instance_, context, given.data(), results.data(), shapes.data(), stream_of(stream), microseconds.data(),
                             launches.data(), kept_launches, &count);
    });
    py::list result;
    for (size_t index = 0; index < static_cast<size_t>(count); index++)
      result.append(py::make_tuple(static_cast<int64_t>(launches[3 * index]), launches[3 * index + 1], launches[3 * index + 2]));
    return result;
  }

 private:
  static void *stream_of(uint64_t stream) { return reinterpret_cast<void *>(static_cast<uintptr_t>(stream)); }

  template <typename Body>
  void call(const Body &body) {
    Reported reported;
    int32_t status;
    {
      py::gil_scoped_release release;
      status = body(&reported.context);
    }
    reported.check(status);
  }

  std::shared_ptr<Model> model_;
  tw_cuda_instance *instance_ = nullptr;
};

int32_t device_count() {
  Reported reported;
  int32_t count = 0;
  reported.check(tw_cuda_count_devices(&reported.context, &count));
  return count;
}

py::dict describe_device(int32_t number) {
  Reported reported;
  tw_cuda_facts facts;
  reported.check(tw_cuda_describe_device(&reported.context, number, &facts));
  py::dict result;
  result["name"] = facts.name;
  result["architecture"] = facts.architecture;
  result["driver"] = facts.driver;
  result["multiprocessors"] = facts.multiprocessors;
  result["shared_bytes"] = facts.shared_bytes;
  result["memory_bytes"] = facts.memory_bytes;
  result["free_bytes"] = facts.free_bytes;
  return result;
}

uint64_t allocate(int32_t device, uint64_t stream, int64_t bytes) {
  Reported reported;
  void *memory = nullptr;
  int32_t status;
  {
    py::gil_scoped_release release;
    status = tw_cuda_allocate(&reported.context, device, reinterpret_cast<void *>(static_cast<uintptr_t>(stream)), bytes, &memory);
  }
  reported.check(status);
  return reinterpret_cast<uintptr_t>(memory);
}

void *pointer_of(uint64_t address) { return reinterpret_cast<void *>(static_cast<uintptr_t>(address)); }

void copy_in(int32_t device, uint64_t memory, py::array array, uint64_t stream) {
  Reported reported;
  const void *source = array.data();
  const int64_t bytes = array.nbytes();
  int32_t status;
  {
    py::gil_scoped_release release;
    status = tw_cuda_copy_in(&reported.context, device, pointer_of(memory), source, bytes, pointer_of(stream));
  }
  reported.check(status);
}

void copy_out(int32_t device, uint64_t memory, py::array array, uint64_t stream) {
  Reported reported;
  void *target = array.mutable_data();
  const int64_t bytes = array.nbytes();
  int32_t status;
  {
    py::gil_scoped_release release;
    status = tw_cuda_copy_out(&reported.context, device, target, pointer_of(memory), bytes, pointer_of(stream));
  }
  reported.check(status);
}

int32_t device_of(uint64_t memory) {
  Reported reported;
  int32_t device = -1;
  reported.check(tw_cuda_device_of(&reported.context, pointer_of(memory), &device));
  return device;
}

void bind_model(py::module_ &module) {
  py::class_<Model, std::shared_ptr<Model>> model(module, "Model", "A model's code and description, on no device yet.");
  model.def_static("from_object", &Model::from_object, py::arg("object_code"), py::arg("prefix"))
      .def_static("from_library", &Model::from_library, py::arg("path"), py::arg("symbol"))
      .def("plan", &Model::plan, py::arg("dims"))
      .def("image", &Model::image, py::arg("architecture"))
      .def_property_readonly("architectures", &Model::architectures)
      .def_property_readonly("code_bytes", &Model::code_bytes)
      .def_property_readonly("source", [](const Model &self) { return self.program()->source; })
      .def_property_readonly("reads_conditions", [](const Model &self) { return (self.program()->flags & TW_CUDA_READS_CONDITIONS) != 0; });
  bindings::bind_description(model, [](const Model &self) { return self.model(); });
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "Runs compiled models on CUDA devices; the driver is opened at the first use.";
  module.attr("CUDA_HEADER") = tw_cuda_text;
  bind_model(module);
  py::class_<Instance>(module, "Instance", "A model on a device: code, constants, and the memory of its calls.")
      .def(py::init<std::shared_ptr<Model>, int32_t, py::object>(), py::arg("model"), py::arg("device"), py::arg("constants"))
      .def("run", &Instance::run, py::arg("inputs"), py::arg("outputs"), py::arg("dims"), py::arg("stream"))
      .def("run_host", &Instance::run_host, py::arg("inputs"), py::arg("outputs"), py::arg("dims"))
      .def("wait", &Instance::wait, py::arg("stream"))
      .def("profile", &Instance::profile, py::arg("inputs"), py::arg("outputs"), py::arg("dims"), py::arg("stream"));
  module.def("device_count", &device_count, "Devices of this machine.");
  module.def("describe_device", &describe_device, py::arg("device"));
  module.def("allocate", &allocate, py::arg("device"), py::arg("stream"), py::arg("bytes"), "Device memory for calls in the stream.");
  module.def("copy_in", &copy_in, py::arg("device"), py::arg("memory"), py::arg("array"), py::arg("stream"),
             "Copies a contiguous array to a device.");
  module.def("copy_out", &copy_out, py::arg("device"), py::arg("memory"), py::arg("array"), py::arg("stream"),
             "Fills a contiguous array from a device.");
  module.def("device_of", &device_of, py::arg("memory"), "The device that an address belongs to, or -1.");
  tw_bind_dlpack(module);
  module.def("release", [](int32_t device, uint64_t memory) { tw_cuda_release(device, reinterpret_cast<void *>(static_cast<uintptr_t>(memory))); },
             py::arg("device"), py::arg("memory"));
}
