// Weights in huge pages, where the system has them.
//
// Active rows are far apart, so of small pages nearly every row needs another one, and finding a page takes the
// processor about as long as reading a quarter of a row of 2 KiB. A page of 2 MiB holds a thousand rows.
#pragma once

#include <atomic>

#include "weights.h"

namespace sparsecc {

// Asks for huge pages, the first time that a node's weights are used. Of a memory-mapped file they are those in which
// the system reads it from the disk, if the file system can, one at a time; what it has in memory already stays as it
// is.
class HugePages {
 public:
  void Prefer(const Weights& weights) const {
    if (!has_asked_.exchange(true)) Ask(weights);
  }

 private:
  static void Ask(const Weights& weights);

  mutable std::atomic<bool> has_asked_ = false;
};

}  // namespace sparsecc
