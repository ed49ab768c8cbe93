/* Tests of csrc/simulator/: what a launch may touch, what traps, what is counted. Launches are functions of this file. */
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "../simulator/accelerator.h"

using namespace simulator;

namespace {

int failures = 0;

void expect(bool good, const char *what, int line) {
  if (good) return;
  std::fprintf(stderr, "test_accelerator.cpp:%d: %s\n", line, what);
  failures++;
}
#define EXPECT(condition) expect((condition), #condition, __LINE__)

enum launches {
  ADD_ONE, READ_BEHIND, STORE_BEHIND, STORE_BEFORE, OVER_THE_END, STORE_TO_READ, FAIL, USE_OWN_MEMORY, READ_NEIGHBOUR, DOUBLE, REVERSE, COUNT,
  COUNT_ELSEWHERE
};

const int64_t page = 4096;
uint8_t seen_neighbour = 0;

/* Operands: 64 bytes at 0 are read, 64 bytes at 128 are stored to. */
int32_t run(tw_team *team, const void *const *inputs, void *const *, const int64_t *shapes, const uint8_t *, uint8_t *memory, int64_t,
            int64_t) {
  volatile uint8_t *bytes = memory;
  switch (shapes[0]) {
    case ADD_ONE:
      for (int at = 0; at < 64; at++) bytes[128 + at] = static_cast<uint8_t>(bytes[at] + 1);
      break;
    case READ_BEHIND: bytes[128] = bytes[3 * page]; break; /* a page without operands */
    case STORE_BEHIND: bytes[128 + 64] = 7; break;         /* a byte behind the operand, on its page */
    case STORE_BEFORE: bytes[-1] = 7; break;
    case OVER_THE_END: bytes[128] = bytes[4 * page]; break;
    case STORE_TO_READ: bytes[5] = 7; break;
    case FAIL: team->fail(team, TW_ERROR_INDEX, 0, 9, 4); return TW_ERROR_INDEX;
    case USE_OWN_MEMORY:
      std::memset(const_cast<void *>(inputs[0]), 3, 200);
      for (int at = 0; at < 64; at++) bytes[128 + at] = static_cast<const uint8_t *>(inputs[0])[at];
      break;
    case DOUBLE: /* over the 64 bytes at 0 */
      for (int at = 0; at < 64; at++) bytes[at] = static_cast<uint8_t>(2 * bytes[at]);
      break;
    case REVERSE: /* of 128 bytes at 0 the last 64 */
      for (int at = 0; at < 64; at++) bytes[128 + at] = bytes[127 - at];
      break;
    case READ_NEIGHBOUR: seen_neighbour = bytes[256]; bytes[128] = 0; break; /* another value on the same page */
    case COUNT: bytes[128 + 16 * shapes[1]] = static_cast<uint8_t>(10 + shapes[1]); break;
    case COUNT_ELSEWHERE: bytes[128 + 16 * (shapes[1] + 1)] = 1; break;
  }
  return 0;
}

const char *const sites[] = {"take: at home"};
const code generated = {run, 200, sites, 1};

step fetch(int64_t number, int64_t address, int64_t bytes) { return {kind::fetch, space::input, number, 0, address, bytes, 0, {}, "fetch"}; }
step spill(int64_t address, space where, int64_t offset, int64_t bytes) {
  return {kind::spill, where, 0, offset, address, bytes, 0, {}, "spill"};
}
step fetch_back(int64_t offset, int64_t address, int64_t bytes) {
  return {kind::fetch, space::workspace, 0, offset, address, bytes, 0, {}, "fetch"};
}
step release(int64_t address) { return {kind::free, space::input, 0, 0, address, 0, 0, {}, "free"}; }
step reserve(int64_t address, int64_t bytes) { return {kind::reserve, space::input, 0, 0, address, bytes, 0, {}, "reserve"}; }
step launch_on(int64_t number, const std::vector<operand> &operands) {
  step made = {kind::launch, space::input, number, 0, 0, 0, 10, {}, "launch"};
  for (const operand &each : operands) made.operands.push_back({each});
  return made;
}
step launch(int64_t number) { return launch_on(number, {{0, 64, true, false}, {128, 64, false, true}}); }

struct result {
  account counted;
  std::string message;
  int32_t status = TW_OK;
  std::vector<uint8_t> output;
};

result play(const std::vector<step> &steps, int64_t bytes = 4 * page, int64_t banks = 1) {
  std::vector<uint8_t> input(64), output(64, 0);
  for (size_t at = 0; at < input.size(); at++) input[at] = static_cast<uint8_t>(at);
  result found;
  try {
    machine simulated({"model", bytes, 64, banks, 16, 100, 4096}, generated, {{input.data(), 64}}, {{output.data(), 64}}, {nullptr, 0});
    found.counted = simulated.run(steps);
  } catch (const trap &caught) {
    found.message = caught.what();
    found.status = caught.status;
  }
  found.output = output;
  return found;
}

bool traps(const std::vector<step> &steps, const char *words, int64_t bytes = 4 * page) {
  const result found = play(steps, bytes);
  const bool right = found.status == TW_ERROR_ASSERT && found.message.find(words) != std::string::npos;
  if (!right) std::fprintf(stderr, "expected '%s', found '%s'\n", words, found.message.c_str());
  return right;
}

void test_counts() {
  const result plain = play({fetch(0, 0, 64), launch(ADD_ONE), release(0), spill(128, space::output, 0, 64), release(128)});
  EXPECT(plain.status == TW_OK);
  EXPECT(plain.output[5] == 6);
  EXPECT(plain.counted.read == 64 && plain.counted.written == 64 && plain.counted.compulsory == 128);
  EXPECT(plain.counted.peak == 192 && plain.counted.launches == 1 && plain.counted.transfers == 2);
  EXPECT(plain.counted.cycles == 104 + 10 + 104 && plain.counted.computing == 10 && plain.counted.transferring == 208);
  const result back = play({fetch(0, 0, 64), launch(ADD_ONE), spill(128, space::workspace, 64, 64), release(128), fetch_back(64, 320, 64),
                            spill(320, space::output, 0, 64)});
  EXPECT(back.status == TW_OK && back.output[5] == 6);
  EXPECT(back.counted.read == 128 && back.counted.written == 128 && back.counted.compulsory == 128);
}

void test_overlap() {
  /* the second fetch goes to a bank that the launch does not touch, or to one that it does */
  const std::vector<step> apart = {fetch(0, 0, 64), launch(ADD_ONE), fetch(0, 3 * page, 64), spill(128, space::output, 0, 64)};
  EXPECT(play(apart, 4 * page, 4).counted.cycles == 104 + 104 + 104);
  EXPECT(play(apart, 4 * page, 1).counted.cycles == 104 + 10 + 104 + 104);
}

void test_own_memory() {
  const result own = play({fetch(0, 0, 64), launch(USE_OWN_MEMORY), spill(128, space::output, 0, 64)});
  EXPECT(own.status == TW_OK && own.output[63] == 3);
}

void test_launches_see_their_operands() {
  const std::vector<step> both = {fetch(0, 0, 64), fetch(0, 256, 64), launch(READ_NEIGHBOUR), spill(128, space::output, 0, 64)};
  EXPECT(play(both).status == TW_OK);
  EXPECT(seen_neighbour == poison);
  EXPECT(traps({fetch(0, 0, 64), launch(READ_BEHIND)}, "touched memory that is none of its operands, at byte 12288"));
  EXPECT(traps({fetch(0, 0, 64), launch(OVER_THE_END)}, "touched memory that is none of its operands, at byte 16384"));
  EXPECT(traps({fetch(0, 0, 64), launch(STORE_BEHIND)}, "stored to byte 192"));
  EXPECT(traps({fetch(0, 0, 64), launch(STORE_BEFORE)}, "touched memory that is none of its operands, at byte -1"));
  EXPECT(traps({fetch(0, 0, 64), launch(STORE_BEFORE)}, "stored to byte -1", page + 256)); /* within the first page */
  EXPECT(traps({fetch(0, 0, 64), launch(STORE_TO_READ)}, "stored to byte 5"));
}

void test_wrong_schedules() {
  EXPECT(traps({launch(ADD_ONE)}, "reads bytes 0 to 64, which hold no value"));
  EXPECT(traps({fetch(0, 0, 64), release(0), launch(ADD_ONE)}, "which hold no value"));
  EXPECT(traps({fetch(0, 0, 64), fetch(0, 128, 64), launch(ADD_ONE)}, "whose value was fetched"));
  EXPECT(traps({fetch(0, 0, 64), launch(ADD_ONE), spill(128, space::workspace, 0, 64), launch(ADD_ONE)}, "whose value was spilled"));
  EXPECT(traps({fetch(0, 64, 64), fetch(0, 64, 64)}, "are taken"));
  EXPECT(traps({fetch(0, 32, 64)}, "no multiple of 64"));
  EXPECT(traps({fetch(0, 4 * page, 64)}, "leave the scratchpad"));
  EXPECT(traps({fetch(0, -64, 64)}, "leave the scratchpad"));
  EXPECT(traps({fetch(0, 0, 65)}, "leave memory off the chip"));
  EXPECT(traps({fetch(1, 0, 64)}, "no input or output 1"));
  EXPECT(traps({fetch_back(0, 0, 64)}, "was not spilled there"));
  EXPECT(traps({spill(0, space::output, 0, 64)}, "no value of 64 bytes lies at 0"));
  EXPECT(traps({release(64)}, "nothing lies at 64"));
  EXPECT(traps({fetch(0, 0, 64), spill(0, space::input, 0, 64)}, "nothing can be stored to inputs"));
  EXPECT(traps({}, "output 0 was not spilled"));
}

/* A launch stores to a byte that moves with the count around it, downwards. */
std::vector<step> repeated(int64_t times, int64_t number) {
  const moving_operand moving = {{128, 1, false, true}, {16}};
  return {{kind::reserve, space::input, 0, 0, 128, 64, 0, {}, "reserve"},
          {kind::repeat, space::input, times, 1, 4, 0, 0, {}, "repeat"},
          {kind::launch, space::input, number, 0, 0, 0, 10, {moving}, "launch"},
          {kind::next, space::input, 0, 0, 2, 0, 0, {}, "repeat"},
          spill(128, space::output, 0, 64)};
}

void test_control_flow() {
  const result counted = play(repeated(4, COUNT));
  EXPECT(counted.status == TW_OK && counted.counted.launches == 4 && counted.counted.computing == 40);
  EXPECT(counted.output[0] == 10 && counted.output[48] == 13 && counted.output[1] == poison);
  const result never = play(repeated(0, COUNT));
  EXPECT(never.status == TW_OK && never.counted.launches == 0 && never.output[0] == poison);
  EXPECT(traps(repeated(4, COUNT_ELSEWHERE), "stored to byte 192"));
  /* no value begins or is replaced within */
  std::vector<step> begun = repeated(4, COUNT);
  begun[0] = fetch(0, 0, 64);
  EXPECT(traps(begun, "stores to bytes 176 to 177, where a value would begin within control flow"));
  begun[2] = launch_on(DOUBLE, {{0, 64, true, true}});
  EXPECT(traps(begun, "whose value was fetched"));
  begun[2] = release(0);
  EXPECT(traps(begun, "there are no transfers within control flow"));
  /* byte 0 of the input is 0, byte 1 is not */
  for (int64_t at = 0; at < 2; at++) {
    const step unless = {kind::unless, space::input, 0, 0, 4, 0, 0, {{{at, 1, true, false}}}, "branch"};
    const result chosen = play({fetch(0, 0, 64), launch(ADD_ONE), unless, launch(ADD_ONE), spill(128, space::output, 0, 64)});
    EXPECT(chosen.status == TW_OK && chosen.counted.launches == 1 + at);
  }
  EXPECT(traps({{kind::unless, space::input, 0, 0, 1, 0, 0, {{{0, 1, true, false}}}, "branch"}}, "a condition is read at byte 0"));
  EXPECT(traps({{kind::unless, space::input, 1, 0, 1, 0, 0, {{{0, 1, true, false}}}, "branch"}}, "a condition leaves the constants"));
}

void test_what_is_shared() {
  const step over = launch_on(DOUBLE, {{0, 64, true, true}}), reverse = launch_on(REVERSE, {{0, 128, true, false}, {128, 64, false, true}});
  /* a value that was fetched is replaced as a whole, one that was spilled too, and is another one then */
  const result twice = play({fetch(0, 0, 64), over, spill(0, space::workspace, 0, 64), over, spill(0, space::output, 0, 64)});
  EXPECT(twice.status == TW_OK && twice.output[5] == 20);
  EXPECT(twice.counted.read == 64 && twice.counted.written == 128 && twice.counted.compulsory == 128);
  EXPECT(traps({fetch(0, 0, 64), launch_on(DOUBLE, {{0, 32, true, true}})}, "stores to bytes 0 to 32, whose value was fetched"));
  EXPECT(traps({over}, "reads bytes 0 to 64, which hold no value"));
  EXPECT(traps({fetch(0, 0, 64), launch_on(DOUBLE, {{0, 64, true, false}, {0, 64, true, true}})}, "stores to bytes 0 on, which are of two"));
  /* values side by side are read as one */
  const result one = play({fetch(0, 0, 64), fetch(0, 64, 64), reverse, spill(128, space::output, 0, 64)});
  EXPECT(one.status == TW_OK && one.output[0] == 63);
  EXPECT(traps({fetch(0, 0, 64), fetch(0, 192, 64), reverse}, "reads bytes 0 to 128, which hold no value"));
  EXPECT(traps({fetch(0, 0, 60), fetch(0, 64, 64), reverse}, "reads bytes 0 to 128, which hold no value"));
  /* what is reserved is a value of its own */
  EXPECT(play({fetch(0, 0, 64), reserve(128, 64), launch(ADD_ONE), spill(128, space::output, 0, 64)}).output[5] == 6);
  EXPECT(traps({fetch(0, 0, 64), reserve(0, 64)}, "are taken"));
  EXPECT(traps({reserve(0, 0)}, "0 bytes are reserved"));
}

void test_failures_of_launches() {
  const result failed = play({fetch(0, 0, 64), launch(FAIL)});
  EXPECT(failed.status == TW_ERROR_INDEX);
  EXPECT(failed.message == "take: at home: index 9 is out of bounds for axis with size 4");
}

}  // namespace

int main() {
  test_counts();
  test_overlap();
  test_own_memory();
  test_launches_see_their_operands();
  test_wrong_schedules();
  test_what_is_shared();
  test_failures_of_launches();
  test_control_flow();
  if (failures == 0) std::puts("accelerator: all tests passed");
  return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
