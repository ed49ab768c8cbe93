/* Python bindings: tilewright.runtime._native. Bindings only: what runs a model is in run.cpp, what loads one in elf_loader.cpp.
 *
 * Assumes the interpreter's lock (GIL) is held on entry; it is released while a model runs, so the free list of workspaces
 * needs no lock of its own. Errors leave as the public classes of tilewright.ir.errors. A Model owns its code or library and
 * refers to its Constants; it must not be destroyed during a call, which the caller's own reference ensures.
 * Arguments that are not plain arrays of the right dtype, rank and layout go to a converter written in Python
 * (runtime/buffer.py), which copies, imports or refuses them: the fast path here only recognises what needs nothing.
 */
#include <dlfcn.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "abi.h"
#include "abi_text.h"
#include "bindings.h"
#include "constants.h"
#include "dlpack.h"
#include "elf_loader.h"
#include "machine.h"
#include "pool.h"
#include "run.h"

namespace py = pybind11;
using bindings::address;
using bindings::dtype_names;
using bindings::dtype_object;
using bindings::raise;
using bindings::raise_status;

namespace {

const int flag_contiguous = py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_;
const int flag_aligned = py::detail::npy_api::NPY_ARRAY_ALIGNED_;
const int flag_writeable = py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
const int most_dims = 64; /* NumPy's limit */
const int64_t large_bytes = int64_t(64) << 20;
const size_t kept_workspaces = 8;
std::string describe_tensor(const tw_tensor_descriptor &tensor) {
  std::string text = std::string(dtype_names[tensor.dtype]) + "[";
  for (int32_t axis = 0; axis < tensor.rank; axis++) {
    if (axis > 0) text += ", ";
    if (tensor.dims[axis] >= 0)
      text += std::to_string(tensor.dims[axis]);
    else
      text += tensor.dim_names != nullptr && tensor.dim_names[axis] != nullptr ? tensor.dim_names[axis] : "?";
  }
  return text + "]";
}

/* A segment of constants: a mapped sidecar file, or a Python buffer that is kept alive (copied when it is not aligned). */
class Constants {
 public:
  static std::unique_ptr<Constants> open(const std::string &path, int64_t bytes, const std::string &digest, bool verify) {
    auto result = std::make_unique<Constants>();
    char error[1024] = "";
    int32_t status;
    {
      py::gil_scoped_release release;
      status = tw_constants_open(path.c_str(), bytes, digest.c_str(), verify, &result->view_, error, sizeof error);
    }
    if (status != TW_OK) raise_status(status, error);
    return result;
  }

  static std::unique_ptr<Constants> from_buffer(py::buffer buffer) {
    auto result = std::make_unique<Constants>();
    if (PyObject_GetBuffer(buffer.ptr(), &result->buffer_, PyBUF_SIMPLE) != 0) throw py::error_already_set();
    result->has_buffer_ = true;
    result->view_.data = static_cast<const uint8_t *>(result->buffer_.buf);
    result->view_.bytes = result->buffer_.len;
    if ((reinterpret_cast<uintptr_t>(result->view_.data) & 63) != 0) result->copy_aligned();
    return result;
  }

  Constants() { std::memset(&view_, 0, sizeof view_); }
  Constants(const Constants &) = delete;
  Constants &operator=(const Constants &) = delete;
  ~Constants() {
    if (has_buffer_) PyBuffer_Release(&buffer_);
    tw_constants_close(&view_);
  }

  const uint8_t *data() const { return view_.data; }
  int64_t bytes() const { return view_.bytes; }

 private:
  void copy_aligned() {
    size_t bytes = static_cast<size_t>(view_.bytes);
    void *memory = mmap(nullptr, std::max<size_t>(bytes, 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) raise("RuntimeFailure", "constants: could not allocate " + std::to_string(bytes) + " bytes");
    if (bytes > 0) std::memcpy(memory, view_.data, bytes);
    mprotect(memory, std::max<size_t>(bytes, 1), PROT_READ);
    view_.data = static_cast<const uint8_t *>(memory);
    view_.mapping = memory;
    view_.mapping_bytes = static_cast<int64_t>(std::max<size_t>(bytes, 1));
    PyBuffer_Release(&buffer_);
    has_buffer_ = false;
  }

  tw_constants view_;
  Py_buffer buffer_;
  bool has_buffer_ = false;
};

struct workspace_block {
  void *memory = nullptr;
  size_t bytes = 0;
};

/* One loaded model. */
class Model {
 public:
  Model(py::object converter, py::object constants) : converter_(std::move(converter)), constants_(std::move(constants)) {}
  Model(const Model &) = delete;
  Model &operator=(const Model &) = delete;

  static std::unique_ptr<Model> from_object(py::buffer object_code, const std::string &symbol, py::object constants, py::object converter) {
    auto result = std::make_unique<Model>(std::move(converter), std::move(constants));
    result->code_ = bindings::load_code(object_code, {
        {"tw_plan_model", address(tw_plan_model)}, {"tw_run_model", address(tw_run_model)},
        {"tw_profile_model", address(tw_profile_model)}, {"tw_open_model", address(tw_open_model)},
        {"tw_close_model", address(tw_close_model)}, {"tw_selftest_model", address(tw_selftest_model)},
        {"tw_describe_model", address(tw_describe_model)},
    });
    size_t size = 0;
    const void *place = tw_code_symbol(result->code_.get(), symbol.c_str(), &size);
    if (place == nullptr) raise("ArtifactError", "object code: it does not define '" + symbol + "'");
    result->adopt(static_cast<const tw_model *>(place), size);
    return result;
  }

  /* `variant`: the target of the one to use, or empty for the library's own choice. */
  static std::unique_ptr<Model> from_library(const std::string &path, const std::string &symbol, py::object constants, py::object converter,
                                             const std::string &variant) {
    auto result = std::make_unique<Model>(std::move(converter), std::move(constants));
    result->library_ = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (result->library_ == nullptr) raise("ArtifactError", "library '" + path + "': cannot be loaded: " + dlerror());
    void *place = dlsym(result->library_, symbol.c_str());
    if (place == nullptr) raise("ArtifactError", "library '" + path + "': it does not export '" + symbol + "'; is it a tilewright artifact?");
    bool describes = symbol.size() > 9 && symbol.compare(symbol.size() - 9, 9, "_describe") == 0;
    const tw_model *model = describes ? reinterpret_cast<const tw_model *(*)()>(place)() : static_cast<const tw_model *>(place);
    check_version(model, sizeof(tw_model));
    result->adopt(variant.empty() ? model : find_variant(model, variant), sizeof(tw_model));
    return result;
  }

  ~Model() {
    for (workspace_block &block : free_blocks_) munmap(block.memory, block.bytes);
    if (library_ != nullptr) dlclose(library_);
  }

  const tw_model *get() const { return model_; }

  /* The targets and features of all variants, the best one first. */
  py::list variants() const {
    py::list found;
    for (const tw_model *next = first_variant(model_); next != nullptr; next = next->next_variant)
      found.append(py::make_tuple(next->target, next->features));
    return found;
  }
  size_t code_bytes() const { return code_ == nullptr ? 0 : tw_code_bytes(code_.get()); }
  py::object constants() const { return constants_; }

  /* Gives the model the constants it was loaded without (a library says which ones only once it is loaded). */
  void set_constants(py::object constants) {
    const Constants &segment = constants.cast<const Constants &>();
    if (segment.bytes() != model_->constants_bytes)
      raise("ArtifactError", std::string(model_->name) + ": found constants of " + std::to_string(segment.bytes()) +
                                 " bytes, expected " + std::to_string(model_->constants_bytes));
    constants_ = std::move(constants);
    constants_data_ = segment.data();
  }

  py::object run(py::handle arguments, py::handle out, int32_t threads) { return call(arguments, out, threads, nullptr, nullptr); }

  /* Events of each thread as bytes: pairs of int64, time and what (run.h). `capacity`: how many of a thread are kept. */
  py::tuple profile(py::handle arguments, py::handle out, int32_t threads, int64_t capacity) {
    if (threads <= 0) threads = tw_pool_default_threads();
    size_t members = static_cast<size_t>(threads);
    std::vector<int64_t> nanoseconds(static_cast<size_t>(model_->kernel_count) + 1, 0), counts(members, 0);
    std::vector<uint64_t> owners(members, 0);
    std::unique_ptr<tw_event[]> events(new tw_event[members * static_cast<size_t>(capacity)]);
    tw_timeline timeline = {events.get(), capacity, counts.data(), owners.data(), threads};
    py::object result = call(arguments, out, threads, nanoseconds.data(), &timeline);
    nanoseconds.pop_back();
    py::list tracks;
    for (size_t thread = 0; thread < members; thread++)
      tracks.append(py::bytes(reinterpret_cast<const char *>(events.get() + thread * static_cast<size_t>(capacity)),
                              static_cast<size_t>(std::min(counts[thread], capacity)) * sizeof(tw_event)));
    return py::make_tuple(result, nanoseconds, tracks);
  }

  py::tuple plan(const std::vector<std::vector<int64_t>> &shapes) const {
    std::vector<int64_t> dims;
    if (shapes.size() != static_cast<size_t>(model_->input_count)) raise_count(static_cast<int64_t>(shapes.size()));
    for (size_t index = 0; index < shapes.size(); index++) {
      const tw_tensor_descriptor &input = model_->inputs[index];
      if (shapes[index].size() != static_cast<size_t>(input.rank))
        raise("ArgumentError", std::string(model_->name) + ": input '" + input.name + "': found rank " + std::to_string(shapes[index].size()) +
                                   ", expected " + describe_tensor(input));
      dims.insert(dims.end(), shapes[index].begin(), shapes[index].end());
    }
    dims.push_back(0);
    std::vector<int64_t> output_dims(output_dim_count_ + 1);
    int64_t bytes = 0;
    checked_plan(dims.data(), output_dims.data(), &bytes, 1);
    py::list results;
    const int64_t *next = output_dims.data();
    for (int32_t index = 0; index < model_->output_count; index++) {
      py::tuple shape(model_->outputs[index].rank);
      for (int32_t axis = 0; axis < model_->outputs[index].rank; axis++) shape[axis] = py::int_(*next++);
      results.append(shape);
    }
    return py::make_tuple(results, bytes);
  }

  std::string selftest(int32_t threads) const {
    char error[1024] = "";
    tw_context context = make_context(threads, error, sizeof error);
    int32_t status;
    {
      py::gil_scoped_release release;
      status = tw_selftest_model(model_, &context, constants_data_);
    }
    if (status != TW_OK) raise_status(status, error);
    return error;
  }

 private:
  static const tw_model *first_variant(const tw_model *model) { return model->first_variant == nullptr ? model : model->first_variant; }

  static const tw_model *find_variant(const tw_model *model, const std::string &target) {
    std::string known;
    for (const tw_model *next = first_variant(model); next != nullptr; next = next->next_variant) {
      if (next->target == target) return next;
      known += (known.empty() ? "" : ", ") + std::string(next->target);
    }
    raise("ArtifactError", std::string(model->name) + ": found variant=\"" + target + "\", expected one of: " + known);
  }

  static void check_version(const tw_model *model, size_t bytes) {
    uint32_t version = 0;
    if (model == nullptr || bytes < sizeof version) raise("ArtifactError", "the model's description is missing or too short");
    std::memcpy(&version, model, sizeof version);
    if (version != TW_ABI_VERSION)
      raise("ArtifactError", "the artifact has ABI version " + std::to_string(version) + ", this runtime expects " +
                                 std::to_string(TW_ABI_VERSION) + "; compile the model again with this version of tilewright");
    if (bytes < sizeof(tw_model)) raise("ArtifactError", "the model's description is truncated");
  }

  tw_context make_context(int32_t threads, char *error, size_t capacity) const {
    tw_context context;
    std::memset(&context, 0, sizeof context);
    context.abi_version = TW_ABI_VERSION;
    context.threads = threads;
    context.error = error;
    context.error_capacity = capacity;
    const bool alone = first_variant(model_) == model_ && model_->next_variant == nullptr;
    context.variant = alone ? nullptr : model_->target; /* chosen when it was loaded */
    return context;
  }

  void adopt(const tw_model *model, size_t bytes) {
    check_version(model, bytes);
    model_ = model;
    const char *wrong = find_damage();
    if (wrong != nullptr) raise("ArtifactError", std::string("the model's description is damaged: ") + wrong);
    char feature[64];
    if (tw_missing_feature(model->features, feature, sizeof feature)) {
      char error[1024] = "";
      tw_context context = make_context(0, error, sizeof error);
      if (model->next_variant == nullptr) context.variant = nullptr; /* the last one: speak of all */
      const int32_t status = tw_refuse_cpu(model, &context, feature);
      raise_status(status, std::string(error) + " (target=\"cpu\")");
    }
    for (int32_t index = 0; index < model->input_count; index++) input_dtypes_.push_back(dtype_object(model->inputs[index].dtype));
    for (int32_t index = 0; index < model->output_count; index++) {
      output_dtypes_.push_back(dtype_object(model->outputs[index].dtype));
      output_dim_count_ += static_cast<size_t>(model->outputs[index].rank);
    }
    constants_data_ = model->constants;
    if (!constants_.is_none()) set_constants(constants_);
  }

  const char *find_damage() const {
    const tw_model &model = *model_;
    if (model.name == nullptr || model.target == nullptr || model.features == nullptr || model.plan == nullptr || model.thread == nullptr)
      return "null pointer";
    if (model.input_count < 0 || model.output_count < 0 || model.kernel_count < 0 || model.site_count < 0) return "negative count";
    if (model.constants_bytes < 0) return "negative size of constants";
    if (code_ != nullptr && !(tw_code_contains(code_.get(), reinterpret_cast<const void *>(model.plan), 1) &&
                              tw_code_contains(code_.get(), reinterpret_cast<const void *>(model.thread), 1)))
      return "entry point outside the code";
    if ((model.input_count > 0 && model.inputs == nullptr) || (model.output_count > 0 && model.outputs == nullptr)) return "no descriptors";
    for (int32_t index = 0; index < model.input_count + model.output_count; index++) {
      const tw_tensor_descriptor &tensor = index < model.input_count ? model.inputs[index] : model.outputs[index - model.input_count];
      if (tensor.name == nullptr || tw_dtype_bytes(tensor.dtype) == 0 || tensor.rank < 0 || tensor.rank > most_dims ||
          (tensor.rank > 0 && tensor.dims == nullptr))
        return "bad tensor descriptor";
    }
    return nullptr;
  }

  void checked_plan(const int64_t *dims, int64_t *output_dims, int64_t *bytes, int32_t threads) const {
    char error[1024] = "";
    tw_context context = make_context(threads, error, sizeof error);
    int32_t status = tw_plan_model(model_, &context, dims, output_dims, bytes);
    if (status != TW_OK) raise_status(status, error);
  }

  [[noreturn]] void raise_count(int64_t found) const {
    std::string names;
    for (int32_t index = 0; index < model_->input_count; index++)
      names += (index > 0 ? ", " : "") + std::string(model_->inputs[index].name) + ": " + describe_tensor(model_->inputs[index]);
    raise("ArgumentError", std::string(model_->name) + ": found " + std::to_string(found) + " inputs, expected " +
                               std::to_string(model_->input_count) + " (" + names + ")");
  }

  static bool is_plain(PyObject *value, const py::object &dtype, int32_t rank, int flags) {
    auto &api = py::detail::npy_api::get();
    if (Py_TYPE(value) != api.PyArray_Type_) return false;
    auto *array = py::detail::array_proxy(value);
    if (array->nd != rank || (array->flags & flags) != flags) return false;
    return array->descr == dtype.ptr() || api.PyArray_EquivTypes_(array->descr, dtype.ptr());
  }

  /* Fills pointers and dims of the inputs; `held` keeps converted arguments alive for the call. */
  void gather_inputs(PyObject *const *values, std::vector<const void *> &inputs, std::vector<int64_t> &dims, std::vector<py::object> &held) {
    for (int32_t index = 0; index < model_->input_count; index++) {
      PyObject *value = values[index];
      const int32_t rank = model_->inputs[index].rank;
      if (!is_plain(value, input_dtypes_[index], rank, flag_contiguous | flag_aligned)) {
        held.push_back(converter_(py::handle(value), index));
        value = held.back().ptr();
        if (!is_plain(value, input_dtypes_[index], rank, flag_contiguous | flag_aligned))
          raise("ArgumentError", std::string(model_->name) + ": input '" + model_->inputs[index].name + "' was not converted to " +
                                     describe_tensor(model_->inputs[index]));
      }
      auto *array = py::detail::array_proxy(value);
      inputs.push_back(array->data);
      dims.insert(dims.end(), array->dimensions, array->dimensions + rank);
    }
  }

  py::object new_output(size_t index, const int64_t *dims) const {
    const tw_tensor_descriptor &output = model_->outputs[index];
    int64_t bytes = tw_dtype_bytes(output.dtype);
    bool overflow = false;
    for (int32_t axis = 0; axis < output.rank; axis++) overflow |= __builtin_mul_overflow(bytes, dims[axis], &bytes) || bytes < 0;
    if (overflow || (bytes >= large_bytes && bytes > tw_available_memory()))
      raise("RuntimeFailure", std::string(model_->name) + ": output '" + output.name + "' needs " +
                                  (overflow ? std::string("more than 2^63") : std::to_string(bytes)) + " bytes, but only " +
                                  std::to_string(tw_available_memory()) + " bytes of memory are available; use smaller sizes");
    auto &api = py::detail::npy_api::get();
    static_assert(sizeof(Py_intptr_t) == sizeof(int64_t), "dims are passed on as they are");
    Py_INCREF(output_dtypes_[index].ptr()); /* the call takes over a reference */
    PyObject *array = api.PyArray_NewFromDescr_(api.PyArray_Type_, output_dtypes_[index].ptr(), output.rank,
                                                reinterpret_cast<const Py_intptr_t *>(dims), nullptr, nullptr, 0, nullptr);
    if (array == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(array);
  }

  /* Checks one array of out=; raises, or tells whether the model may write to it directly. */
  bool check_out(PyObject *value, size_t index, const int64_t *dims) const {
    const tw_tensor_descriptor &output = model_->outputs[index];
    if (!py::isinstance<py::array>(value)) raise_out(index, dims, std::string("found ") + Py_TYPE(value)->tp_name + ", expected an array:");
    auto *array = py::detail::array_proxy(value);
    bool equal = array->nd == output.rank && std::equal(dims, dims + output.rank, array->dimensions);
    if (equal && is_plain(value, output_dtypes_[index], output.rank, flag_contiguous | flag_aligned | flag_writeable)) return true;
    auto &api = py::detail::npy_api::get();
    if (!equal || (!api.PyArray_EquivTypes_(array->descr, output_dtypes_[index].ptr()) && !same_but_swapped(value, index)))
      raise_out(index, dims, "found " + std::string(py::str(py::handle(value).attr("dtype"))) +
                                 std::string(py::str(py::handle(value).attr("shape"))) + ", expected");
    if ((array->flags & flag_writeable) == 0) raise_out(index, dims, "the array is read only, expected a writable");
    return false;
  }

  [[noreturn]] void raise_out(size_t index, const int64_t *dims, const std::string &found) const {
    const tw_tensor_descriptor &output = model_->outputs[index];
    raise("ArgumentError", std::string(model_->name) + ": out for output '" + output.name + "': " + found + " " +
                               dtype_names[output.dtype] + std::string(py::str(shape_tuple(dims, output.rank))));
  }

  bool same_but_swapped(PyObject *value, size_t index) const {
    return py::handle(value).attr("dtype").attr("newbyteorder")("=").equal(output_dtypes_[index]);
  }

  static py::tuple shape_tuple(const int64_t *dims, int32_t rank) {
    py::tuple shape(rank);
    for (int32_t axis = 0; axis < rank; axis++) shape[axis] = py::int_(dims[axis]);
    return shape;
  }

  static bool overlaps(const void *a, int64_t a_bytes, const void *b, int64_t b_bytes) {
    auto first = reinterpret_cast<uintptr_t>(a), second = reinterpret_cast<uintptr_t>(b);
    return a_bytes > 0 && b_bytes > 0 && first < second + static_cast<uint64_t>(b_bytes) && second < first + static_cast<uint64_t>(a_bytes);
  }

  static int64_t array_bytes(const int64_t *dims, const tw_tensor_descriptor &tensor) {
    int64_t bytes = tw_dtype_bytes(tensor.dtype);
    for (int32_t axis = 0; axis < tensor.rank; axis++) bytes *= dims[axis];
    return bytes;
  }

  /* Is [data, data + bytes) free of all inputs and of the outputs before `index`? */
  bool is_apart(const void *data, int64_t bytes, const std::vector<const void *> &inputs, const std::vector<int64_t> &dims,
                const std::vector<void *> &outputs, const std::vector<int64_t> &output_dims) const {
    const int64_t *next = dims.data();
    for (int32_t index = 0; index < model_->input_count; next += model_->inputs[index++].rank)
      if (overlaps(data, bytes, inputs[index], array_bytes(next, model_->inputs[index]))) return false;
    next = output_dims.data();
    for (size_t index = 0; index < outputs.size(); next += model_->outputs[index++].rank)
      if (overlaps(data, bytes, outputs[index], array_bytes(next, model_->outputs[index]))) return false;
    return true;
  }

  /* From the first byte of an array to behind its last, whatever its strides. */
  static std::pair<uintptr_t, uintptr_t> byte_range(const py::object &value, int64_t element_bytes) {
    auto *array = py::detail::array_proxy(value.ptr());
    auto first = reinterpret_cast<uintptr_t>(array->data), last = first; /* unsigned: steps back wrap */
    for (int axis = 0; axis < array->nd; axis++) {
      if (array->dimensions[axis] == 0) return {first, first};
      const auto reach = static_cast<uintptr_t>((array->dimensions[axis] - 1) * array->strides[axis]);
      (array->strides[axis] < 0 ? first : last) += reach;
    }
    return {first, last + static_cast<uintptr_t>(element_bytes)};
  }

  /* Refuses an array of out= (checked to be one) that shares memory with one before: one of the results would be lost. */
  void check_shared(const py::object &array, size_t index, const std::vector<py::object> &before) const {
    for (size_t other = 0; other < index; other++) {
      const auto one = byte_range(array, tw_dtype_bytes(model_->outputs[index].dtype));
      const auto two = byte_range(before[other], tw_dtype_bytes(model_->outputs[other].dtype));
      if (one.second <= two.first || two.second <= one.first || one.first == one.second || two.first == two.second) continue;
      if (!py::module_::import("numpy").attr("shares_memory")(array, before[other]).cast<bool>()) continue; /* interleaved */
      raise("ArgumentError", std::string(model_->name) + ": out for output '" + model_->outputs[index].name +
                                 "': found memory of the array for output '" + model_->outputs[other].name +
                                 "', expected an array of its own for each output");
    }
  }

  /* What the model writes to, and what the caller gets: they differ where out= cannot be written to directly. */
  struct result_arrays {
    std::vector<void *> data;
    std::vector<py::object> written, returned;
  };

  void gather_outputs(py::handle out, const std::vector<const void *> &inputs, const std::vector<int64_t> &dims,
                      const std::vector<int64_t> &output_dims, result_arrays &results) const {
    const size_t count = static_cast<size_t>(model_->output_count);
    py::object given;
    if (!out.is_none()) {
      given = py::isinstance<py::array>(out) ? py::object(py::make_tuple(out)) : py::reinterpret_borrow<py::object>(out);
      if (!PyTuple_Check(given.ptr()) && !PyList_Check(given.ptr()))
        raise("ArgumentError", std::string(model_->name) + ": out: found " + Py_TYPE(given.ptr())->tp_name + ", expected an array or a tuple of arrays");
      if (py::len(given) != count)
        raise("ArgumentError", std::string(model_->name) + ": out: found " + std::to_string(py::len(given)) + " arrays, expected " + std::to_string(count));
    }
    const int64_t *shape = output_dims.data();
    for (size_t index = 0; index < count; shape += model_->outputs[index++].rank) {
      py::object target = given ? py::reinterpret_steal<py::object>(PySequence_GetItem(given.ptr(), static_cast<Py_ssize_t>(index))) : py::none();
      py::object written;
      const bool direct = !target.is_none() && check_out(target.ptr(), index, shape);
      if (!target.is_none()) check_shared(target, index, results.returned);
      if (direct) {
        void *data = py::detail::array_proxy(target.ptr())->data;
        if (is_apart(data, array_bytes(shape, model_->outputs[index]), inputs, dims, results.data, output_dims)) written = target;
      }
      if (!written) written = new_output(index, shape);
      results.data.push_back(py::detail::array_proxy(written.ptr())->data);
      results.returned.push_back(target.is_none() ? written : target);
      results.written.push_back(std::move(written));
    }
  }

  workspace_block take_workspace(size_t bytes) {
    auto best = free_blocks_.end();
    for (auto block = free_blocks_.begin(); block != free_blocks_.end(); ++block)
      if (block->bytes >= bytes && (best == free_blocks_.end() || block->bytes < best->bytes)) best = block;
    workspace_block result;
    if (best != free_blocks_.end()) {
      result = *best;
      free_blocks_.erase(best);
      return result;
    }
    if (!free_blocks_.empty()) { /* all are too small: sizes grew, so let the old one go */
      munmap(free_blocks_.back().memory, free_blocks_.back().bytes);
      free_blocks_.pop_back();
    }
    result.bytes = (bytes + 4095) & ~size_t(4095);
    bool refused = static_cast<int64_t>(bytes) >= large_bytes && static_cast<int64_t>(bytes) > tw_available_memory();
    result.memory = refused ? MAP_FAILED : mmap(nullptr, result.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (result.memory == MAP_FAILED)
      raise("RuntimeFailure", std::string(model_->name) + ": needs " + std::to_string(bytes) + " bytes of workspace, but only " +
                                  std::to_string(tw_available_memory()) + " bytes of memory are available; use smaller sizes");
    if (result.bytes >= (size_t(4) << 20)) madvise(result.memory, result.bytes, MADV_HUGEPAGE);
    return result;
  }

  void give_workspace(workspace_block block) {
    if (block.memory == nullptr) return;
    if (free_blocks_.size() < kept_workspaces)
      free_blocks_.push_back(block);
    else
      munmap(block.memory, block.bytes);
  }

  py::object call(py::handle arguments, py::handle out, int32_t threads, int64_t *nanoseconds, tw_timeline *timeline) {
    if (!PyTuple_Check(arguments.ptr()) && !PyList_Check(arguments.ptr())) throw py::type_error("arguments: expected a tuple or list");
    Py_ssize_t given = PySequence_Fast_GET_SIZE(arguments.ptr());
    if (given != model_->input_count) raise_count(given);
    if (constants_data_ == nullptr && model_->constants_bytes > 0)
      raise("ArtifactError", std::string(model_->name) + ": its constants are not loaded");
    std::vector<const void *> inputs;
    std::vector<int64_t> dims, output_dims(output_dim_count_ + 1);
    std::vector<py::object> held;
    inputs.reserve(static_cast<size_t>(given) + 1);
    dims.reserve(static_cast<size_t>(given) * 4 + 1);
    py::tuple values = PyTuple_Check(arguments.ptr()) ? py::reinterpret_borrow<py::tuple>(arguments)
                                                      : py::reinterpret_steal<py::tuple>(PyList_AsTuple(arguments.ptr()));
    gather_inputs(PySequence_Fast_ITEMS(values.ptr()), inputs, dims, held);
    dims.push_back(0);
    int64_t bytes = 0;
    checked_plan(dims.data(), output_dims.data(), &bytes, threads);
    result_arrays results;
    gather_outputs(out, inputs, dims, output_dims, results);
    workspace_block workspace = bytes > 0 ? take_workspace(static_cast<size_t>(bytes)) : workspace_block();
    char error[1024];
    error[0] = 0;
    tw_context context = make_context(threads, error, sizeof error);
    PyThreadState *state = PyEval_SaveThread();
    int32_t status = tw_run_timed(model_, &context, inputs.data(), results.data.data(), dims.data(), constants_data_, workspace.memory, bytes,
                                  nanoseconds, timeline);
    PyEval_RestoreThread(state);
    give_workspace(workspace);
    if (status != TW_OK) raise_status(status, error);
    return finish(results);
  }

  static py::object finish(result_arrays &results) {
    for (size_t index = 0; index < results.written.size(); index++)
      if (!results.written[index].is(results.returned[index]) &&
          py::detail::npy_api::get().PyArray_CopyInto_(results.returned[index].ptr(), results.written[index].ptr()) != 0)
        throw py::error_already_set();
    if (results.returned.size() == 1) return results.returned[0];
    py::tuple all(results.returned.size());
    for (size_t index = 0; index < results.returned.size(); index++) all[index] = results.returned[index];
    return std::move(all);
  }

  py::object converter_, constants_;
  bindings::loaded_code code_;
  void *library_ = nullptr;
  const tw_model *model_ = nullptr;
  const uint8_t *constants_data_ = nullptr;
  std::vector<py::object> input_dtypes_, output_dtypes_;
  size_t output_dim_count_ = 0;
  std::vector<workspace_block> free_blocks_;
};

/* An array over the memory of a "dltensor" capsule whose element type NumPy's own importer does not know: bfloat16. */
py::object import_dlpack_bfloat16(py::capsule capsule) {
  dlpack::managed_tensor *managed = dlpack::find_tensor(capsule);
  const dlpack::tensor &tensor = managed->tensor;
  if (tensor.code != dlpack::bfloat || tensor.bits != 16 || tensor.lanes != 1) throw py::value_error("the element type is not bfloat16");
  if (tensor.device_type != dlpack::cpu) throw py::value_error("the tensor is not in CPU memory");
  std::vector<py::ssize_t> shape(tensor.shape, tensor.shape + tensor.rank), strides(shape.size());
  py::ssize_t stride = 2;
  for (size_t axis = shape.size(); axis-- > 0; stride *= shape[axis]) strides[axis] = tensor.strides == nullptr ? stride : tensor.strides[axis] * 2;
  const py::capsule owner = dlpack::keep_tensor(capsule, managed);
  return py::array(py::reinterpret_borrow<py::dtype>(dtype_object(TW_BFLOAT16)), shape, strides, static_cast<char *>(tensor.data) + tensor.byte_offset, owner);
}

py::object missing_feature(const std::string &features) {
  char name[64];
  if (tw_missing_feature(features.c_str(), name, sizeof name)) return py::str(name);
  return py::none();
}

uint64_t checksum(py::buffer buffer) {
  py::buffer_info info = buffer.request();
  py::gil_scoped_release release;
  return tw_checksum(info.ptr, static_cast<size_t>(info.size * info.itemsize));
}

void bind_constants(py::module_ &module) {
  py::class_<Constants>(module, "Constants", py::buffer_protocol(), "A read-only segment of constants; supports the buffer protocol.")
      .def_static("open", &Constants::open, py::arg("path"), py::arg("bytes"), py::arg("digest"), py::arg("verify") = true,
                  "Map a sidecar file after checking its header and, with verify, its checksum.")
      .def_static("from_buffer", &Constants::from_buffer, py::arg("buffer"),
                  "Use a contiguous buffer in place, keeping it alive; it is copied unless aligned to 64 bytes.")
      .def_property_readonly("bytes", &Constants::bytes)
      .def_buffer([](Constants &self) {
        return py::buffer_info(const_cast<uint8_t *>(self.data()), 1, py::format_descriptor<uint8_t>::format(), 1,
                               {static_cast<py::ssize_t>(self.bytes())}, {py::ssize_t(1)}, true);
      });
}

void bind_model(py::module_ &module) {
  py::class_<Model> model(module, "Model", "A loaded model: its description and its entry points.");
  model.def_static("from_object", &Model::from_object, py::arg("object_code"), py::arg("symbol"), py::arg("constants"), py::arg("converter"))
      .def_static("from_library", &Model::from_library, py::arg("path"), py::arg("symbol"), py::arg("constants"), py::arg("converter"),
                  py::arg("variant") = "")
      .def("run", &Model::run, py::arg("arguments"), py::arg("out"), py::arg("threads"))
      .def("profile", &Model::profile, py::arg("arguments"), py::arg("out"), py::arg("threads"), py::arg("capacity"))
      .def("plan", &Model::plan, py::arg("shapes"))
      .def("selftest", &Model::selftest, py::arg("threads"))
      .def("set_constants", &Model::set_constants, py::arg("constants"))
      .def_property_readonly("constants", &Model::constants)
      .def_property_readonly("code_bytes", &Model::code_bytes)
      .def_property_readonly("features", [](const Model &self) { return self.get()->features; })
      .def_property_readonly("variants", &Model::variants)
      .def_property_readonly("golden_bytes", [](const Model &self) { return self.get()->golden_bytes; });
  bindings::bind_description(model, [](const Model &self) { return self.get(); });
}

}  // namespace

PYBIND11_MODULE(_native, module) {
  module.doc() = "Native runtime: loads compiled models and runs them on the process-wide thread pool.";
  module.attr("ABI_VERSION") = TW_ABI_VERSION;
  module.attr("ABI_HEADER") = tw_abi_text;
  module.attr("GOLDEN_MAGIC") = TW_GOLDEN_MAGIC;
  module.attr("CONSTANTS_HEADER_BYTES") = TW_CONSTANTS_HEADER_BYTES;
  bind_constants(module);
  bind_model(module);
  module.def("default_threads", &tw_pool_default_threads, "Threads that a call uses unless told otherwise: affinity and cgroup quota.");
  module.def("available_memory", &tw_available_memory, "Bytes of memory that this process could still get.");
  module.def("missing_feature", &missing_feature, py::arg("features"), "First LLVM feature name of a comma separated list that this CPU lacks, or None.");
  module.def("checksum", &checksum, py::arg("buffer"), "XXH64 (seed 0) of a contiguous buffer.");
  module.def("import_dlpack_bfloat16", &import_dlpack_bfloat16, py::arg("capsule"), "Array over a bfloat16 DLPack capsule, without a copy.");
  module.def("stop_pool", &tw_pool_stop, "Stop and join idle workers (they start again on demand); 1 when it was done.");
}
