#include "timing.h"

#include <algorithm>

namespace simulator {

timing::timing(const timing_facts &facts)
    : facts_(facts), bank_computing_(static_cast<size_t>(facts.banks), 0), bank_transferring_(static_cast<size_t>(facts.banks), 0) {}

int64_t timing::bank(int64_t address) const {
  return std::min(address / facts_.bank_bytes, facts_.banks - 1);
}

int64_t timing::after(const std::vector<int64_t> &banks, const range &place) const {
  int64_t moment = 0;
  if (place.begin < place.end)
    for (int64_t at = bank(place.begin); at <= bank(place.end - 1); at++) moment = std::max(moment, banks[static_cast<size_t>(at)]);
  return moment;
}

void timing::occupy(std::vector<int64_t> &banks, const range &place, int64_t until) const {
  if (place.begin < place.end)
    for (int64_t at = bank(place.begin); at <= bank(place.end - 1); at++)
      banks[static_cast<size_t>(at)] = std::max(banks[static_cast<size_t>(at)], until);
}

int64_t timing::vacant(const range &place) const {
  int64_t moment = 0;
  for (const left &one : left_)
    if (one.place.begin < place.end && place.begin < one.place.end) moment = std::max(moment, one.until);
  return moment;
}

void timing::leave(const range &place, const moments &when) {
  const int64_t until = std::max(when.ready, when.used);
  /* what lies within is over: it was vacant when this value came */
  left_.erase(std::remove_if(left_.begin(), left_.end(),
                             [&place](const left &one) { return place.begin <= one.place.begin && one.place.end <= place.end; }),
              left_.end());
  left_.push_back({place, until});
}

int64_t timing::transfer(int64_t bytes, const range &place, int64_t earliest) {
  const int64_t rate = facts_.transfer_bytes_per_cycle;
  const int64_t cycles = facts_.transfer_latency + (bytes + rate - 1) / rate;
  const int64_t end = std::max({transferring_, earliest, after(bank_computing_, place)}) + cycles;
  transferring_ = end;
  busy_transferring_ += cycles;
  occupy(bank_transferring_, place, end);
  return end;
}

int64_t timing::compute(int64_t cycles, const std::vector<range> &places, int64_t earliest) {
  int64_t start = std::max(computing_, earliest);
  for (const range &place : places) start = std::max(start, after(bank_transferring_, place));
  computing_ = start + cycles;
  busy_computing_ += cycles;
  for (const range &place : places) occupy(bank_computing_, place, computing_);
  return computing_;
}

}  // namespace simulator
