#include "memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace simulator {

namespace {

const size_t guard_bytes = size_t(16) << 20;
enum page_use : uint8_t { unused = 0, is_read = 1, is_stored = 2 };

}  // namespace

size_t page_bytes() {
  static const size_t bytes = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

guarded_memory::guarded_memory(int64_t bytes) : bytes_(bytes) {
  const size_t page = page_bytes();
  page_count_ = (static_cast<size_t>(bytes) + page - 1) / page;
  mapped_ = page_count_ * page + 2 * guard_bytes;
  void *mapping = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  mapping_ = static_cast<uint8_t *>(mapping);
  pages_ = mapping_ + guard_bytes;
  base_ = pages_ + page_count_ * page - static_cast<size_t>(bytes);
  if (page_count_ > 0 && mprotect(pages_, page_count_ * page, PROT_READ | PROT_WRITE) != 0) {
    munmap(mapping_, mapped_);
    throw std::bad_alloc();
  }
  std::memset(pages_, poison, page_count_ * page);
}

guarded_memory::~guarded_memory() { munmap(mapping_, mapped_); }

void guarded_memory::protect(size_t first, size_t last, bool readable, bool writable) {
  if (first == last) return;
  const int how = (readable ? PROT_READ : PROT_NONE) | (writable ? PROT_WRITE : PROT_NONE);
  /* splitting a mapping takes memory of the system */
  if (mprotect(pages_ + first * page_bytes(), (last - first) * page_bytes(), how) != 0) throw std::bad_alloc();
}

view::view(guarded_memory &memory, const std::vector<operand> &operands) : memory_(memory) {
  const size_t page = page_bytes();
  std::vector<uint8_t> use(memory.page_count(), unused);
  std::vector<operand> sorted;
  for (const operand &one : operands) {
    if (one.bytes == 0) continue;
    sorted.push_back(one);
    const size_t begin = static_cast<size_t>(memory.base() + one.address - memory.pages());
    for (size_t at = begin / page; at <= (begin + static_cast<size_t>(one.bytes) - 1) / page; at++)
      use[at] = std::max<uint8_t>(use[at], one.stored ? is_stored : is_read);
  }
  std::sort(sorted.begin(), sorted.end(), [](const operand &a, const operand &b) { return a.address < b.address; });
  size_t next = 0;
  for (size_t first = 0; first < use.size();) { /* what is used side by side */
    if (use[first] == unused) {
      first++;
      continue;
    }
    size_t last = first;
    while (last < use.size() && use[last] != unused) last++;
    uint8_t *at = memory.pages() + first * page, *stop = memory.pages() + last * page;
    for (; next < sorted.size() && memory.base() + sorted[next].address < stop; next++) {
      uint8_t *begin = memory.base() + sorted[next].address, *end = begin + sorted[next].bytes;
      keep(at, begin, true);
      at = std::max(at, end);
    }
    keep(at, stop, true);
    first = last;
  }
  for (const operand &one : sorted) { /* what is only read, where its pages can be stored to */
    uint8_t *begin = memory.base() + one.address, *end = begin + one.bytes;
    for (uint8_t *at = begin; !one.stored && at < end;) {
      const size_t number = static_cast<size_t>(at - memory.pages()) / page;
      uint8_t *stop = std::min(end, memory.pages() + (number + 1) * page);
      if (use[number] == is_stored) keep(at, stop, false);
      at = stop;
    }
  }
  for (size_t first = 0; first < use.size();) {
    size_t last = first;
    while (last < use.size() && use[last] == use[first]) last++;
    memory.protect(first, last, use[first] != unused, use[first] == is_stored);
    first = last;
  }
}

void view::keep(uint8_t *begin, uint8_t *end, bool hidden) {
  if (begin >= end) return;
  kept_.push_back({begin, std::vector<uint8_t>(begin, end), hidden});
  if (hidden) std::memset(begin, poison, static_cast<size_t>(end - begin));
}

int64_t view::check(const kept &part) const {
  for (size_t at = 0; at < part.bytes.size(); at++)
    if (part.place[at] != (part.hidden ? poison : part.bytes[at])) return part.place + at - memory_.base();
  return untouched;
}

int64_t view::end() {
  if (!open_) return untouched;
  open_ = false;
  memory_.protect(0, memory_.page_count(), true, true);
  int64_t changed = untouched;
  for (const kept &part : kept_) {
    if (changed == untouched) changed = check(part);
    std::memcpy(part.place, part.bytes.data(), part.bytes.size());
  }
  return changed;
}

}  // namespace simulator
