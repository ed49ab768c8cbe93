/* The memory of the simulated accelerator: exactly so many bytes between pages that nobody may touch, and a launch's view of it.
 *
 * Guarantees: the last byte lies right before a page without access, so that running over the end by one byte is a fault; inside a
 * `view` only the pages of the operands can be touched, those of operands that are only read cannot be stored to, and whatever else
 * lies on these pages is hidden behind bytes of 0xff (NaN as a float, -1 as an integer) and is whole again afterwards.
 * Ownership: a memory owns its pages; a view borrows it and must end before it. One thread at a time.
 */
#ifndef TILEWRIGHT_SIMULATOR_MEMORY_H
#define TILEWRIGHT_SIMULATOR_MEMORY_H
#include <cstddef>
#include <cstdint>
#include <vector>

namespace simulator {

constexpr uint8_t poison = 0xff;

/* Bytes of the scratchpad that a launch reads, or stores to (and may read). */
struct operand {
  int64_t address;
  int64_t bytes;
  bool read, stored;
};

class guarded_memory {
 public:
  /* Throws std::bad_alloc. `bytes` may be 0. All is poison at first. */
  explicit guarded_memory(int64_t bytes);
  ~guarded_memory();
  guarded_memory(const guarded_memory &) = delete;
  guarded_memory &operator=(const guarded_memory &) = delete;

  uint8_t *base() const { return base_; }
  int64_t bytes() const { return bytes_; }
  uint8_t *pages() const { return pages_; }
  size_t page_count() const { return page_count_; }

  /* Read and write, read, or nothing, for pages [first, last). */
  void protect(size_t first, size_t last, bool readable, bool writable);

 private:
  uint8_t *mapping_, *pages_, *base_;
  size_t mapped_, page_count_;
  int64_t bytes_;
};

/* A launch's view: from the constructor to `end`, which says where a byte was changed that is none of the launch's (relative to the
 * base), or `untouched`. A view that is destroyed without `end` restores all the same. */
class view {
 public:
  static constexpr int64_t untouched = INT64_MIN;
  view(guarded_memory &memory, const std::vector<operand> &operands);
  ~view() { end(); }
  view(const view &) = delete;
  view &operator=(const view &) = delete;
  int64_t end();

 private:
  struct kept { /* bytes as they were; hidden: poison stands there meanwhile */
    uint8_t *place;
    std::vector<uint8_t> bytes;
    bool hidden;
  };
  void keep(uint8_t *begin, uint8_t *end, bool hidden);
  int64_t check(const kept &part) const;

  guarded_memory &memory_;
  std::vector<kept> kept_;
  bool open_ = true;
};

size_t page_bytes();

}  // namespace simulator
#endif
