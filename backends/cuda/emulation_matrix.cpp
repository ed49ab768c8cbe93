// What a warp does together: exchanges, votes, matrices between shared memory and registers, products of matrices.
//
// Layouts are those that device.h states. Products are exact and their sum with the accumulator is rounded once, where hardware
// rounds in ways of its own; integers wrap. A lane that has returned counts as one that holds zeros.

#include "emulation_state.h"

#include <cmath>
#include <cstring>

namespace tw {
namespace {

constexpr const char *NAMES[] = {
    "a shuffle", "a vote", "a barrier of the warp", "a load of matrices", "a store of matrices", "a product of f16 matrices",
    "a product of bf16 matrices", "a product of tf32 matrices", "a product of s8 matrices", "a product of u8 matrices",
    "a product of u8 and s8 matrices", "a product of s8 and u8 matrices", "a product of s8 matrices, 16 steps", "a product of e4m3 matrices", "a product of e5m2 matrices"};

bool takes_part(const Meeting &meeting, int lane) { return meeting.arrived >> lane & 1; }

void exchange(const Meeting &meeting) {
  unsigned long long before[32] = {};
  for (int lane = 0; lane < 32; ++lane)
    if (takes_part(meeting, lane)) before[lane] = static_cast<tw_exchange_arguments *>(meeting.arguments[lane])->value;
  for (int lane = 0; lane < 32; ++lane) {
    if (!takes_part(meeting, lane)) continue;
    tw_exchange_arguments *arguments = static_cast<tw_exchange_arguments *>(meeting.arguments[lane]);
    if (takes_part(meeting, arguments->source)) arguments->value = before[arguments->source];
  }
}

void ballot(const Meeting &meeting) {
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (takes_part(meeting, lane) && static_cast<tw_ballot_arguments *>(meeting.arguments[lane])->value) votes |= 1u << lane;
  for (int lane = 0; lane < 32; ++lane)
    if (takes_part(meeting, lane)) static_cast<tw_ballot_arguments *>(meeting.arguments[lane])->result = votes;
}

void synchronise(const Meeting &meeting, Warp &warp) {
  std::vector<Arrival> arrived;
  std::vector<Fiber *> waiting;
  for (int lane = 0; lane < 32; ++lane)
    if (takes_part(meeting, lane)) {
      arrived.push_back({warp.lanes[lane], warp.lanes[lane]->clock});
      waiting.push_back(warp.lanes[lane]);
    }
  join_clocks(arrived, waiting);
}

tw_matrix_arguments *matrix_arguments(const Meeting &meeting, int lane) {
  return takes_part(meeting, lane) ? static_cast<tw_matrix_arguments *>(meeting.arguments[lane]) : nullptr;
}

// The rows that the first lanes give, each 16 bytes of shared memory.
void move_matrices(const Meeting &meeting, Warp &warp, bool load) {
  for (int lane = 0; lane < 32; ++lane) {
    const tw_matrix_arguments *giver = matrix_arguments(meeting, lane);
    if (!giver || lane >= giver->count * 8) continue;
    Fiber &fiber = *warp.lanes[lane];
    if (!is_shared(giver->row, 16)) fault("a row of a matrix that does not lie in shared memory", &fiber);
    if (reinterpret_cast<uintptr_t>(giver->row) % 16) fault("a row of a matrix that is not aligned to 16 bytes", &fiber);
    touch(fiber, giver->row, 16, load ? TW_READ : TW_WRITE);
    const int matrix = lane / 8, row = lane % 8;
    for (int other = 0; other < 32; ++other) {
      const tw_matrix_arguments *holder = matrix_arguments(meeting, other);
      if (!holder) continue;
      uint16_t *halves = reinterpret_cast<uint16_t *>(holder->words + matrix);
      uint16_t *elements = static_cast<uint16_t *>(giver->row);
      for (int half = 0; half < 2; ++half) {
        const int place = 2 * (other % 4) + half;
        const int element_row = holder->transposed ? place : other / 4, element_column = holder->transposed ? other / 4 : place;
        if (element_row != row) continue;
        if (load)
          std::memcpy(halves + half, elements + element_column, 2);
        else
          std::memcpy(elements + element_column, halves + half, 2);
      }
    }
  }
}

// --- values of the operands ---

double small_float(unsigned bits, int fraction, int exponent_bits, bool has_infinity) {
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const double sign = bits >> (fraction + exponent_bits) & 1 ? -1.0 : 1.0;
  const int exponent = int(bits >> fraction) & top;
  const unsigned rest = bits & ((1u << fraction) - 1);
  if (exponent == top && has_infinity) return rest ? NAN : sign * INFINITY;
  if (exponent == top && rest == (1u << fraction) - 1) return NAN;
  return sign * std::ldexp(exponent ? rest + (1u << fraction) : rest, (exponent ? exponent : 1) - bias - fraction);
}

double single(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

}  // namespace

Format left_format(int operation) {
  switch (operation) {
    case TW_MMA_F16: return {2, 16, [](unsigned w, int i) { return small_float(w >> (16 * i) & 0xffff, 10, 5, true); }};
    case TW_MMA_BF16: return {2, 16, [](unsigned w, int i) { return single((w >> (16 * i)) << 16); }};
    case TW_MMA_TF32: return {1, 8, [](unsigned w, int) { return single(w & ~0x1fffu); }};
    case TW_MMA_E4M3: return {4, 32, [](unsigned w, int i) { return small_float(w >> (8 * i) & 0xff, 3, 4, false); }};
    case TW_MMA_E5M2: return {4, 32, [](unsigned w, int i) { return small_float(w >> (8 * i) & 0xff, 2, 5, true); }};
    case TW_MMA_S8_K16: return {4, 16, [](unsigned w, int i) { return double(int8_t(w >> (8 * i))); }};
    case TW_MMA_S8:
    case TW_MMA_S8U8: return {4, 32, [](unsigned w, int i) { return double(int8_t(w >> (8 * i))); }};
    default: return {4, 32, [](unsigned w, int i) { return double(uint8_t(w >> (8 * i))); }};
  }
}

Format right_format(int operation) {
  if (operation == TW_MMA_U8S8) return left_format(TW_MMA_S8);
  if (operation == TW_MMA_S8U8) return left_format(TW_MMA_U8);
  return left_format(operation);
}

bool has_integer_sums(int operation) { return operation >= TW_MMA_S8 && operation <= TW_MMA_S8_K16; }

namespace {

void multiply(const Meeting &meeting) {
  const Format left = left_format(meeting.operation), right = right_format(meeting.operation);
  double a[16][32] = {}, b[32][8] = {};
  const int e = left.steps_a_word, words = left.steps / (4 * e);  // of a column
  for (int lane = 0; lane < 32; ++lane) {
    if (!takes_part(meeting, lane)) continue;
    const tw_mma_arguments *arguments = static_cast<tw_mma_arguments *>(meeting.arguments[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < e; ++i) {
      for (int word = 0; word < 2 * words; ++word) a[g + 8 * (word % 2)][e * (t + 4 * (word / 2)) + i] = left.value(arguments->left[word], i);
      for (int word = 0; word < words; ++word) b[e * (t + 4 * word) + i][g] = right.value(arguments->right[word], i);
    }
  }
  const bool integers = has_integer_sums(meeting.operation);
  for (int lane = 0; lane < 32; ++lane) {
    if (!takes_part(meeting, lane)) continue;
    const tw_mma_arguments *arguments = static_cast<tw_mma_arguments *>(meeting.arguments[lane]);
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
      double sum = 0;
      for (int k = 0; k < left.steps; ++k) sum += a[row][k] * b[k][column];
      if (integers) {
        int &total = static_cast<int *>(arguments->sums)[i];
        total = int(unsigned(total) + unsigned(int(sum)));
      } else {
        float &total = static_cast<float *>(arguments->sums)[i];
        total = float(sum + double(total));
        const unsigned canonical = 0x7fffffff;
        if (total != total) std::memcpy(&total, &canonical, 4);
      }
    }
  }
}

}  // namespace

const char *operation_name(int operation) { return NAMES[operation]; }

void perform(const Meeting &meeting, Warp &warp) {
  switch (meeting.operation) {
    case TW_EXCHANGE: return exchange(meeting);
    case TW_BALLOT: return ballot(meeting);
    case TW_SYNC_WARP: return synchronise(meeting, warp);
    case TW_LOAD_MATRIX: return move_matrices(meeting, warp, true);
    case TW_STORE_MATRIX: return move_matrices(meeting, warp, false);
    default: return multiply(meeting);
  }
}

}  // namespace tw
