/* Tests of the C++ runtime that run under the sanitizers: pool, barrier, run, fork, self test, constants, ELF loader.
 *
 * Usage: test_runtime MODEL.o   (tests/runtime_model/model.c compiled without instrumentation). Exit code 0 when all hold.
 * The model is run twice: loaded by our loader from the object, and as functions in this file, which a sanitizer sees.
 */
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>
#include <vector>

#include "../constants.h"
#include "../elf_loader.h"
#include "../machine.h"
#include "../pool.h"
#include "../run.h"
#include "check.h"

namespace {

/* --- a model: out[i] = in[n - 1 - i] * 2 + 1 by two kernels; an element of 99 is an error --- */

int32_t plan(const int64_t *shapes, int64_t *output_shapes, int64_t *bytes, int64_t *where, int64_t *detail) {
  if (shapes[0] < 0 || shapes[0] > 100000) {
    *where = 0, detail[0] = shapes[0], detail[1] = 100000;
    return TW_ERROR_SHAPE;
  }
  output_shapes[0] = shapes[0];
  *bytes = shapes[0] * 8;
  return TW_OK;
}

int32_t run_thread(tw_team *team, const void *const *inputs, void *const *outputs, const int64_t *shapes, const uint8_t *constants,
                   uint8_t *workspace, int64_t thread, int64_t threads) {
  auto *in = static_cast<const int64_t *>(inputs[0]);
  auto *out = static_cast<int64_t *>(outputs[0]), *middle = reinterpret_cast<int64_t *>(workspace);
  int64_t count = shapes[0], first = count * thread / threads, last = count * (thread + 1) / threads, one;
  std::memcpy(&one, constants, 8);
  for (int64_t i = first; i < last; i++) {
    if (in[i] == 99) team->fail(team, TW_ERROR_INDEX, 0, in[i], 7);
    middle[i] = in[i] * 2;
  }
  if (int32_t status = team->barrier(team)) return status;
  if (thread == 0 && team->mark) team->mark(team, 0);
  for (int64_t i = first; i < last; i++) out[i] = middle[count - 1 - i] + one;
  int32_t status = team->barrier(team);
  if (thread == 0 && team->mark) team->mark(team, 1);
  return status;
}

const int64_t dims[] = {-1};
const char *const dim_names[] = {"n"}, *const kernels[] = {"double", "add"}, *const sites[] = {"take: here"};
const tw_tensor_descriptor tensors[] = {{"values", TW_INT64, 1, dims, dim_names}};
alignas(64) const int64_t one_constant[8] = {1};
const tw_model model = {TW_ABI_VERSION, 0, "test", "host", "", "0", 1, 1, tensors, tensors, 64, "d",
                        reinterpret_cast<const uint8_t *>(one_constant), 2, 1, kernels, sites, plan, run_thread, -1, 0, 0, 0,
                        nullptr, nullptr};

tw_context make_context(int32_t threads, char *error, size_t capacity) {
  tw_context context = {};
  context.abi_version = TW_ABI_VERSION;
  context.threads = threads;
  context.error = error;
  context.error_capacity = capacity;
  return context;
}

void run_once(int64_t count, int32_t threads, int64_t *nanoseconds = nullptr) {
  std::vector<int64_t> in(static_cast<size_t>(count) + 1), out(in.size());
  for (int64_t i = 0; i < count; i++) in[i] = i + 1000;
  const void *inputs[] = {in.data()};
  void *outputs[] = {out.data()};
  char error[256] = "";
  tw_context context = make_context(threads, error, sizeof error);
  if (nanoseconds != nullptr)
    CHECK(tw_profile_model(&model, &context, inputs, outputs, &count, nullptr, nullptr, nanoseconds) == TW_OK);
  else
    CHECK(tw_run_model(&model, &context, inputs, outputs, &count, nullptr, nullptr) == TW_OK);
  for (int64_t i = 0; i < count; i++) CHECK(out[i] == in[count - 1 - i] * 2 + 1);
}

void test_run() {
  for (int64_t count : {0, 1, 5, 1000})
    for (int32_t threads : {0, 1, 2, 3, 8}) run_once(count, threads);
  int64_t nanoseconds[2] = {0, 0};
  run_once(10000, 2, nanoseconds);
  CHECK(nanoseconds[0] > 0 && nanoseconds[1] > 0);
}

/* Every thread of a timed call starts, and meets the others once for each launch; the caller says which kernel ended. */
void test_timeline() {
  const int64_t capacity = 16;
  for (int32_t threads : {1, 2, 5}) {
    std::vector<tw_event> events(static_cast<size_t>(threads * capacity));
    std::vector<int64_t> counts(static_cast<size_t>(threads), 0), in(101), out(101);
    std::vector<uint64_t> owners(static_cast<size_t>(threads), 0);
    int64_t nanoseconds[2] = {0, 0}, count = 100;
    const void *inputs[] = {in.data()};
    void *outputs[] = {out.data()};
    char error[256] = "";
    tw_context context = make_context(threads, error, sizeof error);
    tw_timeline timeline = {events.data(), capacity, counts.data(), owners.data(), threads};
    int64_t workspace = 0;
    CHECK(tw_plan_model(&model, &context, &count, nullptr, &workspace) == TW_OK);
    CHECK(tw_run_timed(&model, &context, inputs, outputs, &count, nullptr, nullptr, workspace, nanoseconds, &timeline) == TW_OK);
    for (int32_t thread = 0; thread < threads; thread++) {
      const tw_event *track = &events[static_cast<size_t>(thread * capacity)];
      int64_t met = 0, ended = 0, kept = counts[static_cast<size_t>(thread)];
      CHECK(kept <= capacity && track[0].what == TW_EVENT_START);
      for (int64_t i = 1; i < kept; i++) {
        CHECK(track[i].nanoseconds >= track[i - 1].nanoseconds);
        if (track[i].what == TW_EVENT_LEAVE) CHECK(track[i - 1].what == TW_EVENT_ARRIVE);
        met += track[i].what == TW_EVENT_LEAVE;
        if (track[i].what >= 0) CHECK(track[i].what == ended++);
      }
      CHECK(ended == (thread == 0 ? 2 : 0));
      CHECK(met == 2);
    }
    timeline.capacity = 1; /* what finds no room is counted */
    counts.assign(counts.size(), 0);
    CHECK(tw_run_timed(&model, &context, inputs, outputs, &count, nullptr, nullptr, workspace, nanoseconds, &timeline) == TW_OK);
    CHECK(counts[0] >= 3);
    timeline.threads = threads + 1;
    CHECK(tw_run_timed(&model, &context, inputs, outputs, &count, nullptr, nullptr, workspace, nanoseconds, &timeline) == TW_ERROR_ARGUMENT);
  }
}

void test_failures() {
  int64_t in[4] = {1, 99, 99, 99}, out[4], count = 4;
  const void *inputs[] = {in};
  void *outputs[] = {out};
  char error[256];
  for (int32_t threads : {1, 2, 4})
    for (int round = 0; round < 50; round++) {
      tw_context context = make_context(threads, error, sizeof error);
      CHECK(tw_run_model(&model, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_INDEX);
      CHECK(std::strcmp(error, "take: here: index 99 is out of bounds for axis with size 7") == 0);
    }
  tw_context context = make_context(1, error, 20); /* a short buffer */
  CHECK(tw_run_model(&model, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_INDEX && std::strlen(error) == 19);
  context.error_capacity = sizeof error;
  count = 100001;
  CHECK(tw_run_model(&model, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_SHAPE);
  CHECK(std::strcmp(error, "test: input 'values', axis 0 (n): found size 100001, expected 100000") == 0);
  count = 4;
  CHECK(tw_run_model(&model, nullptr, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_INDEX); /* no context at all */
  CHECK(tw_run_model(nullptr, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_ARGUMENT);
  CHECK(tw_run_model(&model, &context, nullptr, outputs, &count, nullptr, nullptr) == TW_ERROR_ARGUMENT);
  context.threads = TW_POOL_MAXIMUM + 1;
  in[1] = in[2] = in[3] = 0;
  CHECK(tw_run_model(&model, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_ARGUMENT);
  context.abi_version = 7;
  CHECK(tw_run_model(&model, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_VERSION);
  tw_model other = model;
  other.features = "sse2,no-such";
  context.abi_version = TW_ABI_VERSION;
  CHECK(tw_run_model(&other, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_CPU);
  CHECK(std::strstr(error, "compiled for a CPU with no-such") != nullptr);
}

/* Three variants, of which this machine lacks something for the first: the second runs unless the context says otherwise. */
void test_variants() {
  alignas(64) static const int64_t ten[8] = {10}, hundred[8] = {100};
  static tw_model best = model, middle = model, least = model; /* their addresses are remembered */
  best.target = "best", middle.target = "middle", least.target = "least";
  best.features = "no-such";
  middle.constants = reinterpret_cast<const uint8_t *>(ten);
  least.constants = reinterpret_cast<const uint8_t *>(hundred);
  best.first_variant = middle.first_variant = least.first_variant = &best;
  best.next_variant = &middle, middle.next_variant = &least;
  char error[512] = "";
  tw_context context = make_context(1, error, sizeof error);
  int64_t in[1] = {1}, out[1], count = 1;
  const void *inputs[] = {in};
  void *outputs[] = {out};
  for (const tw_model *any : {&best, &middle, &least}) {
    context.variant = nullptr;
    CHECK(tw_run_model(any, &context, inputs, outputs, &count, nullptr, nullptr) == TW_OK && out[0] == 12);
    CHECK(tw_describe_model(any) == &middle);
    context.variant = "least";
    CHECK(tw_run_model(any, &context, inputs, outputs, &count, nullptr, nullptr) == TW_OK && out[0] == 102);
    tw_constants constants;
    CHECK(tw_open_model(any, &context, nullptr, &constants) == TW_OK && constants.data == least.constants);
    context.variant = "best";
    CHECK(tw_run_model(any, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_CPU);
    CHECK(std::strcmp(error, "test: compiled for a CPU with no-such, which this one lacks; compile it for this CPU") == 0);
    context.variant = "other";
    CHECK(tw_run_model(any, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_ARGUMENT);
    CHECK(std::strcmp(error, "test: found the variant 'other' in the context, expected one of: best, middle, least") == 0);
  }
  static tw_model one = best, two = best;
  one.first_variant = two.first_variant = &one;
  one.next_variant = &two, two.next_variant = nullptr;
  two.target = "also", two.features = "sse2,no-such-either";
  context.variant = nullptr;
  CHECK(tw_run_model(&two, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_CPU && tw_describe_model(&one) == &two);
  CHECK(std::strcmp(error, "test: compiled for best, also; the last of these needs a CPU with no-such-either, which this one lacks; "
                           "compile it for this CPU") == 0);
}

/* A host that brings its own threads and memory. */
std::atomic<int> own_allocations{0};

void test_host_functions() {
  char error[256] = "";
  tw_context context = make_context(3, error, sizeof error);
  context.allocate = [](void *, size_t bytes, size_t alignment) -> void * {
    own_allocations++;
    void *memory = nullptr;
    return posix_memalign(&memory, alignment, bytes) == 0 ? memory : nullptr;
  };
  context.release = [](void *, void *memory) {
    own_allocations--;
    std::free(memory);
  };
  context.parallel = [](void *, int32_t threads, void (*body)(void *, int32_t, int32_t), void *argument) -> int32_t {
    std::vector<std::thread> members;
    for (int32_t thread = 0; thread < threads; thread++) members.emplace_back(body, argument, thread, threads);
    for (std::thread &member : members) member.join();
    return TW_OK;
  };
  int64_t in[3] = {1, 2, 3}, out[3], count = 3;
  const void *inputs[] = {in};
  void *outputs[] = {out};
  CHECK(tw_run_model(&model, &context, inputs, outputs, &count, nullptr, nullptr) == TW_OK);
  CHECK(out[0] == 7 && out[2] == 3 && own_allocations == 0);
  context.allocate = [](void *, size_t, size_t) -> void * { return nullptr; };
  CHECK(tw_run_model(&model, &context, inputs, outputs, &count, nullptr, nullptr) == TW_ERROR_MEMORY);
}

/* --- pool and barrier --- */

struct barrier_job {
  tw_barrier barrier;
  int32_t value;
  int64_t slots[16]; /* plain memory that only the barrier protects */
};

void barrier_body(void *argument, int32_t thread, int32_t threads) {
  auto *job = static_cast<barrier_job *>(argument);
  for (int64_t round = 1; round <= 200; round++) {
    job->slots[thread] = round;
    CHECK(tw_barrier_wait(&job->barrier, &job->value) == 0);
    for (int32_t other = 0; other < threads; other++) CHECK(job->slots[other] == round);
    CHECK(tw_barrier_wait(&job->barrier, &job->value) == 0);
  }
  if (thread == threads - 1) __atomic_store_n(&job->value, -5, __ATOMIC_RELEASE);
  CHECK(tw_barrier_wait(&job->barrier, &job->value) == -5);
}

void test_barrier() {
  for (int32_t threads : {2, 3, 8})
    for (int32_t spin : {0, 1000}) {
      barrier_job job = {};
      job.barrier.threads = threads;
      job.barrier.spin = spin;
      CHECK(tw_pool_run(threads, barrier_body, &job) == TW_OK);
    }
}

void nested_body(void *argument, int32_t, int32_t) {
  auto *refused = static_cast<std::atomic<int> *>(argument);
  if (tw_pool_run(2, nested_body, argument) == TW_ERROR_ARGUMENT) (*refused)++;
}

void test_nested_calls_are_refused() {
  std::atomic<int> refused{0};
  CHECK(tw_pool_run(3, nested_body, &refused) == TW_OK);
  CHECK(refused == 3);
}

void test_concurrent_callers() {
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; caller++)
    callers.emplace_back([caller] {
      for (int round = 0; round < 100; round++) run_once(20 + caller, 1 + (caller + round) % 4);
    });
  for (std::thread &caller : callers) caller.join();
}

void test_sleeping_workers_wake() {
  for (int round = 0; round < 20; round++) {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    run_once(10, 2 + round % 3);
    if (round % 5 == 0) CHECK(tw_pool_stop() == 1);
  }
}

void run_child() {
  pid_t child = fork();
  CHECK(child >= 0);
  if (child == 0) {
    for (int round = 0; round < 5; round++) run_once(50, 3);
    _exit(0);
  }
  int status = 1;
  CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

void test_fork() {
  run_once(50, 3);
  run_child();
  run_once(50, 3);
  std::atomic<bool> stop{false};
  std::thread busy([&] {
    while (!stop) run_once(50, 3);
  });
  for (int round = 0; round < 10; round++) run_child(); /* forks in the middle of the other thread's calls */
  stop = true;
  busy.join();
}

/* --- machine and constants --- */

void test_machine() {
  char name[8];
  CHECK(tw_available_threads() >= 1 && tw_available_memory() > 0);
  CHECK(tw_missing_feature("", name, sizeof name) == 0 && tw_missing_feature(nullptr, name, sizeof name) == 0);
  CHECK(tw_missing_feature(" +no-such-feature , x", name, sizeof name) == 1 && std::strcmp(name, "no-such") == 0);
  CHECK(tw_missing_feature("-no-such,,", name, sizeof name) == 0);
}

void test_constants() {
  std::string path = "/tmp/tilewright-test-" + std::to_string(getpid()) + ".weights";
  std::vector<char> file(TW_CONSTANTS_HEADER_BYTES + 100);
  for (size_t i = 0; i < 100; i++) file[TW_CONSTANTS_HEADER_BYTES + i] = static_cast<char>(i);
  tw_constants_header header = {};
  std::memcpy(header.magic, TW_CONSTANTS_MAGIC, 8);
  header.header_bytes = TW_CONSTANTS_HEADER_BYTES;
  header.bytes = 100;
  header.checksum = tw_checksum(&file[TW_CONSTANTS_HEADER_BYTES], 100);
  std::strcpy(header.digest, "d");
  std::memcpy(file.data(), &header, sizeof header);
  char error[400];
  tw_constants constants;
  for (size_t size = 0; size <= file.size(); size += size < 4090 ? 512 : 1) {
    FILE *stream = std::fopen(path.c_str(), "wb");
    CHECK(stream != nullptr && std::fwrite(file.data(), 1, size, stream) == size);
    std::fclose(stream);
    int32_t status = tw_constants_open(path.c_str(), 100, "d", 1, &constants, error, sizeof error);
    CHECK((status == TW_OK) == (size == file.size()));
  }
  CHECK(constants.bytes == 100 && constants.data[99] == 99);
  tw_constants_close(&constants);
  tw_constants_close(&constants); /* closing twice does nothing */
  CHECK(tw_constants_open(path.c_str(), 99, "d", 1, &constants, error, sizeof error) == TW_ERROR_FILE);
  CHECK(tw_constants_open(path.c_str(), 100, "e", 1, &constants, error, sizeof error) == TW_ERROR_FILE);
  unlink(path.c_str());
  CHECK(tw_constants_open(path.c_str(), 100, "d", 1, &constants, error, sizeof error) == TW_ERROR_FILE && constants.data == nullptr);
}

/* A file of two parts, cut off at every size: what is found is always the right part, and whole. */
void test_constants_in_parts() {
  std::string path = "/tmp/tilewright-test-parts-" + std::to_string(getpid()) + ".weights";
  const size_t second = 2 * TW_CONSTANTS_HEADER_BYTES;
  std::vector<char> file(second + TW_CONSTANTS_HEADER_BYTES + 50);
  for (size_t part : {size_t(0), second}) {
    tw_constants_header header = {};
    std::memcpy(header.magic, TW_CONSTANTS_MAGIC, 8);
    header.header_bytes = TW_CONSTANTS_HEADER_BYTES;
    header.bytes = part == 0 ? 100 : 50;
    std::memset(&file[part + TW_CONSTANTS_HEADER_BYTES], part == 0 ? 1 : 2, header.bytes);
    header.checksum = tw_checksum(&file[part + TW_CONSTANTS_HEADER_BYTES], header.bytes);
    std::strcpy(header.digest, part == 0 ? "d" : "e");
    std::memcpy(&file[part], &header, sizeof header);
  }
  char error[400];
  tw_constants constants;
  for (size_t size = 0; size <= file.size(); size += size % 512 < 500 && size < file.size() - 60 ? 500 : 1) {
    FILE *stream = std::fopen(path.c_str(), "wb");
    CHECK(stream != nullptr && std::fwrite(file.data(), 1, size, stream) == size);
    std::fclose(stream);
    if (tw_constants_open(path.c_str(), 100, "d", 1, &constants, error, sizeof error) == TW_OK) CHECK(constants.data[99] == 1);
    tw_constants_close(&constants);
    CHECK((tw_constants_open(path.c_str(), 50, "e", 1, &constants, error, sizeof error) == TW_OK) == (size == file.size()));
    if (size == file.size()) CHECK(constants.data[49] == 2 && constants.bytes == 50);
    tw_constants_close(&constants);
  }
  CHECK(tw_constants_open(path.c_str(), 50, "f", 1, &constants, error, sizeof error) == TW_ERROR_FILE);
  CHECK(std::strstr(error, "found constants of 100 bytes, the model expects 50") != nullptr);
  unlink(path.c_str());
}

void test_golden() { /* in[2] = {1, 2} gives {5, 3}; every word of the table is damaged in turn */
  alignas(64) int64_t segment[32] = {1, 0, 0, 0, 0, 0, 0, 0, TW_GOLDEN_MAGIC, 1, 2, 64, 16, 128, 16};
  segment[16] = 1, segment[17] = 2, segment[24] = 5, segment[25] = 3;
  tw_model golden = model;
  golden.constants = nullptr;
  golden.constants_bytes = sizeof segment;
  golden.golden_offset = 64;
  golden.golden_bytes = sizeof segment - 64;
  char error[256] = "";
  tw_context context = make_context(2, error, sizeof error);
  CHECK(tw_selftest_model(&golden, &context, reinterpret_cast<uint8_t *>(segment)) == TW_OK);
  for (int word = 8; word < 15; word++)
    for (int64_t wrong : {int64_t(-1), INT64_MAX, INT64_MIN, int64_t(1), int64_t(4096)}) {
      int64_t before = segment[word];
      segment[word] = wrong;
      CHECK(wrong == before || tw_selftest_model(&golden, &context, reinterpret_cast<uint8_t *>(segment)) != TW_OK);
      segment[word] = before;
    }
  segment[25] = 4;
  CHECK(tw_selftest_model(&golden, &context, reinterpret_cast<uint8_t *>(segment)) == TW_ERROR_ASSERT);
}

/* --- loader --- */

std::vector<uint8_t> read_file(const char *path) {
  std::vector<uint8_t> bytes;
  FILE *stream = std::fopen(path, "rb");
  CHECK(stream != nullptr);
  for (int byte; (byte = std::fgetc(stream)) != EOF;) bytes.push_back(static_cast<uint8_t>(byte));
  std::fclose(stream);
  return bytes;
}

const tw_external externals[] = {{"memcpy", reinterpret_cast<const void *>(static_cast<void *(*)(void *, const void *, size_t)>(memcpy))},
                                 {"memset", reinterpret_cast<const void *>(static_cast<void *(*)(void *, int, size_t)>(memset))}};

tw_code *load(const std::vector<uint8_t> &bytes, size_t size, char *error, size_t capacity) {
  uint8_t *exact = new uint8_t[size + 1]; /* of the exact size, so that reading past the end is seen */
  std::memcpy(exact, bytes.data(), size);
  tw_code *code = tw_code_load(exact, size, externals, 2, error, capacity);
  delete[] exact;
  return code;
}

void test_loader(const char *path) {
  std::vector<uint8_t> object = read_file(path);
  char error[256] = "";
  tw_code *code = load(object, object.size(), error, sizeof error);
  if (code == nullptr) std::fprintf(stderr, "%s\n", error);
  CHECK(code != nullptr);
  size_t bytes = 0;
  auto *loaded = static_cast<const tw_model *>(tw_code_symbol(code, "tw_model", &bytes));
  CHECK(loaded != nullptr && bytes >= sizeof(tw_model) && tw_code_contains(code, loaded, sizeof(tw_model)));
  CHECK(!tw_code_contains(code, &model, 1) && tw_code_symbol(code, "none", nullptr) == nullptr);
  alignas(64) float constants[32] = {1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 10, 20, 30, 40, 50};
  float x[8] = {1, 2, 3, 4, 5, 6, 7, 8}, y[6];
  int64_t index[2] = {0, -1}, total = 0, shapes[3] = {2, 4, 2};
  const void *inputs[] = {x, index};
  void *outputs[] = {y, &total};
  tw_context context = make_context(1, error, sizeof error); /* its own races are not instrumented: one thread */
  CHECK(tw_run_model(loaded, &context, inputs, outputs, shapes, reinterpret_cast<uint8_t *>(constants), nullptr) == TW_OK);
  CHECK(y[0] == 12 && y[1] == 14 && y[2] == 16 && y[3] == 60 && total == -1);
  tw_code_free(code);
  tw_code_free(nullptr);
  for (size_t size = 0; size < object.size(); size += size < 128 ? 1 : 13) {
    code = load(object, size, error, sizeof error);
    CHECK(code == nullptr && std::strncmp(error, "object code: ", 13) == 0);
  }
}

void test_damaged_objects(const char *path) { /* random bytes in random places: loads or is refused, and never touches what it must not */
  std::vector<uint8_t> object = read_file(path);
  uint64_t state = 42, refused = 0;
  auto random = [&state](uint64_t bound) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (state >> 33) % bound;
  };
  uint64_t table;
  std::memcpy(&table, &object[40], 8);
  char error[256];
  for (int round = 0; round < 6000; round++) {
    std::vector<uint8_t> damaged = object;
    for (uint64_t count = 1 + random(3); count > 0; count--) {
      uint64_t place = random(3) == 0 ? random(64) : random(2) ? table + random(object.size() - table) : random(object.size());
      damaged[place] = static_cast<uint8_t>(random(2) ? random(256) : (random(2) ? 0xff : 0x7f));
    }
    tw_code *code = load(damaged, damaged.size(), error, sizeof error);
    if (code != nullptr)
      tw_code_symbol(code, "tw_model", nullptr);
    else
      refused++;
    tw_code_free(code);
  }
  CHECK(refused > 1000);
}

void measure() { /* for information */
  auto nothing = [](void *, int32_t, int32_t) {};
  for (int round = 0; round < 1000; round++) tw_pool_run(2, nothing, nullptr);
  auto start = std::chrono::steady_clock::now();
  for (int round = 0; round < 20000; round++) tw_pool_run(2, nothing, nullptr);
  double fork_join = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 20000;
  start = std::chrono::steady_clock::now();
  barrier_job job = {};
  job.barrier.threads = 2;
  job.barrier.spin = tw_pool_spin(2);
  tw_pool_run(2, barrier_body, &job);
  double meeting = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / 401;
  std::printf("fork and join of 2 threads: %.2f us; barrier: %.2f us\n", fork_join * 1e6, meeting * 1e6);
}

}  // namespace

int main(int count, char **arguments) {
  CHECK(count == 2);
  test_machine();
  test_constants();
  test_constants_in_parts();
  test_run();
  test_variants();
  test_timeline();
  test_failures();
  test_golden();
  test_host_functions();
  test_barrier();
  test_nested_calls_are_refused();
  test_concurrent_callers();
  test_sleeping_workers_wake();
  test_fork();
  test_loader(arguments[1]);
  test_damaged_objects(arguments[1]);
  measure();
  std::puts("csrc: all tests passed");
  return 0;
}
