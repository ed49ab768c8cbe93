/* The cost model: two engines, one that computes and one that transfers, each doing its steps in order, one at a time.
 *
 * A step begins when its engine is free, the bytes that it reads are there, whoever used the bytes before that it writes is done, and no
 * step of the other engine is busy in a bank of the scratchpad that it touches. Banks are equal parts of the addresses, but the last. A transfer takes
 * a latency and its bytes at the rate of the engine. Nothing of this depends on data.
 */
#ifndef TILEWRIGHT_SIMULATOR_TIMING_H
#define TILEWRIGHT_SIMULATOR_TIMING_H
#include <cstdint>
#include <vector>

namespace simulator {

struct timing_facts {
  int64_t bank_bytes, banks, transfer_bytes_per_cycle, transfer_latency;
};

/* When the bytes of a value are there, and until when they are used. */
struct moments {
  int64_t ready = 0, used = 0;
};

struct range {
  int64_t begin, end;
};

class timing {
 public:
  explicit timing(const timing_facts &facts);

  /* The earliest moment for bytes that take the place of others. */
  int64_t vacant(const range &place) const;
  void leave(const range &place, const moments &when);

  /* Both give the moment at which the step ends. `earliest`: of all that it needs. */
  int64_t transfer(int64_t bytes, const range &place, int64_t earliest);
  int64_t compute(int64_t cycles, const std::vector<range> &places, int64_t earliest);

  int64_t total() const { return computing_ > transferring_ ? computing_ : transferring_; }
  int64_t busy_computing() const { return busy_computing_; }
  int64_t busy_transferring() const { return busy_transferring_; }

 private:
  struct left {
    range place;
    int64_t until;
  };
  int64_t after(const std::vector<int64_t> &banks, const range &place) const;
  void occupy(std::vector<int64_t> &banks, const range &place, int64_t until) const;
  int64_t bank(int64_t address) const;

  timing_facts facts_;
  std::vector<left> left_;
  std::vector<int64_t> bank_computing_, bank_transferring_;
  int64_t computing_ = 0, transferring_ = 0, busy_computing_ = 0, busy_transferring_ = 0;
};

}  // namespace simulator
#endif
