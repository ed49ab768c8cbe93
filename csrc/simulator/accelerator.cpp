#include "accelerator.h"

#include <algorithm>
#include <cstring>

#include "trap.h"

namespace simulator {

namespace {

struct team {
  tw_team head;
  int32_t site;
  int64_t found, expected;
};

/* The first failure counts, as in csrc/run.cpp. */
void record_failure(tw_team *head, int32_t code, int32_t site, int64_t found, int64_t expected) {
  team *whole = reinterpret_cast<team *>(head);
  if (head->status != TW_OK) return;
  head->status = code;
  whole->site = site;
  whole->found = found;
  whole->expected = expected;
}

int32_t alone(tw_team *head) { return head->status; }

struct call {
  const code *generated;
  team *members;
  const void *thread_memory;
  std::vector<int64_t> number_and_counts;
  const uint8_t *constants;
  uint8_t *scratchpad;
};

int32_t run_launch(void *argument) {
  const call *one = static_cast<call *>(argument);
  const void *const inputs[] = {one->thread_memory};
  return one->generated->thread(&one->members->head, inputs, nullptr, one->number_and_counts.data(), one->constants, one->scratchpad, 0, 1);
}

/* Whole units of the alignment. */
int64_t bank_bytes(const machine_facts &facts) {
  const int64_t share = (facts.scratchpad_bytes + facts.banks - 1) / facts.banks;
  return std::max<int64_t>(1, (share + facts.alignment - 1) / facts.alignment) * facts.alignment;
}

std::string text(int64_t number) { return std::to_string(number); }

bool goes_elsewhere(kind what) { return what == kind::repeat || what == kind::next || what == kind::unless || what == kind::jump; }

/* Of each step, whether something goes past it, forwards or back: so often as data says, or never. */
std::vector<bool> within_control(const std::vector<step> &steps) {
  std::vector<bool> found(steps.size(), false);
  for (size_t number = 0; number < steps.size(); number++) {
    if (!goes_elsewhere(steps[number].what)) continue;
    const size_t other = static_cast<size_t>(steps[number].address), end = std::min(std::max(number, other), steps.size());
    for (size_t at = std::min(number, other); at < end; at++) found[at] = true;
  }
  return found;
}

}  // namespace

machine::machine(const machine_facts &facts, const code &generated, std::vector<chunk> inputs, std::vector<chunk> outputs, chunk constants)
    : facts_(facts), generated_(generated), inputs_(std::move(inputs)), outputs_(std::move(outputs)), constants_(constants),
      scratchpad_(facts.scratchpad_bytes), thread_memory_((generated.thread_bytes + 63) / 64 * 64),
      workspace_(static_cast<size_t>(facts.workspace_bytes), poison),
      timing_({bank_bytes(facts), facts.banks, facts.transfer_bytes_per_cycle, facts.transfer_latency}) {}

account machine::run(const std::vector<step> &steps) {
  controlled_ = within_control(steps);
  for (size_t number = 0, following; number < steps.size(); number = following) {
    const step &one = steps[number];
    following = number + 1;
    where_ = "step " + text(static_cast<int64_t>(number)) + " (" + one.label + "): ";
    within_ = controlled_[number];
    if (within_ && one.what != kind::launch && !goes_elsewhere(one.what)) fail("there are no transfers within control flow");
    switch (one.what) {
      case kind::fetch: fetch(one); break;
      case kind::spill: spill(one); break;
      case kind::free: release(one.address); break;
      case kind::launch: launch(one); break;
      case kind::reserve: reserve(one.address, one.bytes); break;
      default: following = after_control(one, number);
    }
  }
  where_ = "at the end: ";
  for (size_t number = 0; number < outputs_.size(); number++) {
    const auto found = stored_.find({space::output, static_cast<int64_t>(number), 0});
    if (outputs_[number].bytes > 0 && (found == stored_.end() || found->second != outputs_[number].bytes))
      fail("output " + text(static_cast<int64_t>(number)) + " was not spilled");
  }
  account_.cycles = timing_.total();
  account_.computing = timing_.busy_computing();
  account_.transferring = timing_.busy_transferring();
  return account_;
}

void machine::fail(const std::string &message, int32_t status) const { throw trap(facts_.name + ": " + where_ + message, status); }

/* --- transfers --- */

chunk machine::off_chip(const step &one) const {
  chunk whole = {nullptr, 0};
  const std::vector<chunk> &list = one.where == space::input ? inputs_ : outputs_;
  if (one.where == space::constant)
    whole = constants_;
  else if (one.where == space::workspace)
    whole = {const_cast<uint8_t *>(workspace_.data()), static_cast<int64_t>(workspace_.size())};
  else if (one.number >= 0 && one.number < static_cast<int64_t>(list.size()))
    whole = list[static_cast<size_t>(one.number)];
  else
    fail("there is no input or output " + text(one.number));
  if (one.offset < 0 || one.bytes < 0 || one.offset > whole.bytes || one.bytes > whole.bytes - one.offset)
    fail(text(one.bytes) + " bytes at " + text(one.offset) + " leave memory off the chip of " + text(whole.bytes) + " bytes");
  return {whole.data + one.offset, one.bytes};
}

void machine::place(int64_t address, int64_t bytes, bool made, int64_t ready) {
  if (bytes == 0) return;
  const int64_t unit = facts_.alignment, end = address + (bytes + unit - 1) / unit * unit;
  if (address % unit != 0) fail("address " + text(address) + " is no multiple of " + text(unit));
  if (address < 0 || end > facts_.scratchpad_bytes)
    fail("bytes " + text(address) + " to " + text(end) + " leave the scratchpad of " + text(facts_.scratchpad_bytes) + " bytes");
  for (const auto &[begin, other] : values_)
    if (address < other.end && begin < end)
      fail("bytes " + text(address) + " to " + text(end) + " are taken: a value lies at " + text(begin) + " to " + text(other.end));
  values_[address] = {bytes, end, made, false, {ready, ready}};
  account_.peak = std::max(account_.peak, end);
}

void machine::fetch(const step &one) {
  const chunk source = off_chip(one);
  const place_key key = {one.where, one.number, one.offset};
  if (one.where == space::output || one.where == space::workspace) {
    const auto found = stored_.find(key);
    if (found == stored_.end() || found->second != one.bytes) fail("what is fetched was not spilled there");
  } else if (met_.insert(key).second) {
    account_.compulsory += one.bytes;
  }
  const range bytes = {one.address, one.address + one.bytes};
  place(one.address, one.bytes, false, 0);
  if (one.bytes == 0) return;
  std::memcpy(scratchpad_.base() + one.address, source.data, static_cast<size_t>(one.bytes));
  values_[one.address].when.ready = timing_.transfer(one.bytes, bytes, timing_.vacant(bytes));
  account_.read += one.bytes;
  account_.transfers++;
}

void machine::spill(const step &one) {
  if (one.where != space::output && one.where != space::workspace) fail("nothing can be stored to inputs and constants");
  const auto found = values_.find(one.address);
  if (found == values_.end() || found->second.bytes != one.bytes)
    fail("no value of " + text(one.bytes) + " bytes lies at " + text(one.address));
  const chunk target = off_chip(one);
  const place_key key = {one.where, one.number, one.offset};
  std::memcpy(target.data, scratchpad_.base() + one.address, static_cast<size_t>(one.bytes));
  stored_[key] = one.bytes;
  if (one.where == space::output && met_.insert(key).second) account_.compulsory += one.bytes;
  value &here = found->second;
  here.kept = true;
  here.when.used = std::max(here.when.used, timing_.transfer(one.bytes, {one.address, one.address + one.bytes}, here.when.ready));
  account_.written += one.bytes;
  account_.transfers++;
}

void machine::release(int64_t address) {
  const auto found = values_.find(address);
  if (found == values_.end()) fail("nothing lies at " + text(address));
  timing_.leave({address, found->second.end}, found->second.when);
  std::memset(scratchpad_.base() + address, poison, static_cast<size_t>(found->second.bytes));
  values_.erase(found);
}

/* --- control flow --- */

size_t machine::after_control(const step &one, size_t number) {
  const size_t elsewhere = static_cast<size_t>(one.address), following = number + 1;
  switch (one.what) {
    case kind::repeat:
      if (one.number <= 0) return elsewhere;
      counts_.push_back({0, one.number, one.offset != 0});
      return following;
    case kind::next:
      if (++counts_.back().done < counts_.back().extent) return elsewhere;
      counts_.pop_back();
      return following;
    case kind::unless: return truth(one) ? following : elsewhere;
    default: return elsewhere;
  }
}

bool machine::truth(const step &one) {
  const int64_t at = operands_now(one).front().address;
  if (one.number != 0) {
    if (at < 0 || at >= constants_.bytes) fail("a condition leaves the constants");
    return constants_.data[at] != 0;
  }
  if (around(at, at + 1) == nullptr) fail("a condition is read at byte " + text(at) + ", which holds no value");
  return scratchpad_.base()[at] != 0;
}

void machine::reserve(int64_t address, int64_t bytes) {
  if (bytes <= 0) fail(text(bytes) + " bytes are reserved");
  place(address, bytes, true, timing_.vacant({address, address + bytes}));
}

/* --- launches --- */

std::vector<operand> machine::operands_now(const step &one) const {
  std::vector<operand> found;
  for (const moving_operand &each : one.operands) {
    operand now = each.first;
    for (size_t at = 0; at < each.strides.size(); at++) now.address += each.strides[at] * counts_[at].now();
    found.push_back(now);
  }
  return found;
}

machine::value *machine::around(int64_t begin, int64_t end) {
  auto next = values_.upper_bound(begin);
  if (next == values_.begin()) return nullptr;
  --next;
  return end <= next->first + next->second.bytes ? &next->second : nullptr;
}

/* Values side by side are read as one. */
void machine::find_read(const operand &each, std::vector<use> &found) {
  const int64_t end = each.address + each.bytes;
  for (int64_t at = each.address; at < end;) {
    value *there = around(at, at + 1);
    if (there == nullptr) fail("reads bytes " + text(each.address) + " to " + text(end) + ", which hold no value");
    found.push_back({there, false, false});
    at = std::prev(values_.upper_bound(at))->first + there->bytes;
  }
}

/* Within control flow, of which nobody knows how often it runs, no value begins and none is replaced. */
void machine::find_stored(const operand &each, std::vector<use> &found) {
  const int64_t end = each.address + each.bytes;
  value *there = around(each.address, end);
  if (there == nullptr && each.read) fail("reads bytes " + text(each.address) + " to " + text(end) + ", which hold no value");
  if (there == nullptr && within_)
    fail("stores to bytes " + text(each.address) + " to " + text(end) + ", where a value would begin within control flow");
  if (there == nullptr) {
    reserve(each.address, each.bytes);
    there = &values_[each.address];
  }
  const auto begins = values_.find(each.address);
  const bool over = !within_ && each.read && begins != values_.end() && begins->second.bytes == each.bytes;
  if (!over && (!there->made || there->kept))
    fail("stores to bytes " + text(each.address) + " to " + text(end) + ", whose value " + (there->made ? "was spilled" : "was fetched"));
  found.push_back({there, true, over});
}

std::vector<machine::use> machine::find_operands(const std::vector<operand> &operands) {
  std::vector<use> found;
  for (size_t number = 0; number < operands.size(); number++) {
    const operand &each = operands[number];
    if (each.bytes == 0) continue;
    for (size_t before = 0; before < number; before++) {
      const operand &other = operands[before];
      if ((each.stored || other.stored) && each.address < other.address + other.bytes && other.address < each.address + each.bytes)
        fail("stores to bytes " + text(std::max(each.address, other.address)) + " on, which are of two operands");
    }
    if (each.stored)
      find_stored(each, found);
    else
      find_read(each, found);
  }
  return found;
}

void machine::launch(const step &one) {
  const std::vector<operand> operands = operands_now(one);
  const std::vector<use> uses = find_operands(operands);
  int64_t earliest = 0;
  std::vector<range> places;
  for (const operand &each : operands) places.push_back({each.address, each.address + each.bytes});
  for (const use &each : uses) earliest = std::max({earliest, each.there->when.ready, each.over ? each.there->when.used : 0});
  execute(one, operands);
  const int64_t end = timing_.compute(one.cycles, places, earliest);
  for (const use &each : uses) {
    value &there = *each.there;
    there.when.used = std::max(there.when.used, end);
    if (each.stored) there.when.ready = end;
    if (each.over) there.made = true, there.kept = false;
  }
  account_.launches++;
}

void machine::execute(const step &one, const std::vector<operand> &operands) {
  team members = {{alone, record_failure, nullptr, TW_OK, 1}, -1, 0, 0};
  call argument = {&generated_, &members, thread_memory_.base(), {one.number}, constants_.data, scratchpad_.base()};
  for (const count &each : counts_) argument.number_and_counts.push_back(each.now());
  view seen(scratchpad_, operands);
  const outcome result = run_trapped(run_launch, &argument);
  const int64_t changed = seen.end();
  if (result.faulted) {
    const int64_t at = static_cast<int64_t>(result.address) - static_cast<int64_t>(reinterpret_cast<uintptr_t>(scratchpad_.base()));
    fail("touched memory that is none of its operands, at byte " + text(at) + " of the scratchpad");
  }
  if (changed != view::untouched) fail("stored to byte " + text(changed) + " of the scratchpad, which is none of its operands");
  if (result.status == TW_OK && members.head.status == TW_OK) return;
  const int32_t status = members.head.status == TW_OK ? result.status : members.head.status;
  const std::string site = members.site >= 0 && members.site < generated_.site_count ? generated_.sites[members.site] : facts_.name;
  if (status == TW_ERROR_INDEX || status == TW_ERROR_INDEX_UNSIGNED) {
    const std::string found = status == TW_ERROR_INDEX ? text(members.found) : std::to_string(static_cast<uint64_t>(members.found));
    throw trap(site + ": index " + found + " is out of bounds for axis with size " + text(members.expected), TW_ERROR_INDEX);
  }
  throw trap(site + ": check failed: found " + text(members.found) + ", expected " + text(members.expected), status);
}

}  // namespace simulator
