// How much of an operator's work one task takes.
#pragma once

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>
#include <cstddef>
#include <thread>

namespace sparsecc {

// How many processors this process may use, as far as this thread tells: one that is pinned to a single processor says
// nothing of the others.
inline size_t UsableProcessors() {
#ifdef __linux__
  cpu_set_t usable;
  if (sched_getaffinity(0, sizeof usable, &usable) == 0 && CPU_COUNT(&usable) > 1) {
    return static_cast<size_t>(CPU_COUNT(&usable));
  }
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

// The most tasks that can run at once. The size of the session's thread pool is not to be had; this bounds it.
inline size_t MaxTasks() {
  static const size_t count = UsableProcessors();
  return count;
}

// Waking another thread costs some microseconds, in which one thread handles about this many floats.
constexpr size_t kFloatsPerTask = 32768;

// Splits `count` items of `floats` each into tasks of equal size, to a multiple of `step` items.
class Split {
 public:
  Split(size_t count, size_t floats, size_t step = 1) : count_(count) {
    const size_t steps = (count + step - 1) / step;
    const size_t worth = static_cast<size_t>(static_cast<double>(count) * static_cast<double>(floats) / kFloatsPerTask);
    const size_t wanted = std::min({steps, std::max<size_t>(worth, 1), MaxTasks()});
    chunk_ = wanted == 0 ? 0 : (steps + wanted - 1) / wanted * step;
  }

  size_t tasks() const { return chunk_ == 0 ? 0 : (count_ + chunk_ - 1) / chunk_; }
  size_t begin(size_t task) const { return task * chunk_; }
  size_t end(size_t task) const { return std::min(begin(task) + chunk_, count_); }

 private:
  size_t count_;
  size_t chunk_;
};

}  // namespace sparsecc
