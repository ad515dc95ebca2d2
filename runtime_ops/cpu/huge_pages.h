// Weights in huge pages, where the system has them.
//
// Active rows are far apart, so of small pages nearly every row needs another one, and finding a page takes the
// processor about as long as reading a quarter of a row of 2 KiB. A page of 2 MiB holds a thousand rows.
#pragma once

#include "weights.h"

namespace sparsecc {

// Asks for huge pages, before anything of the weights is read. Of a memory-mapped file they are those in which the
// system reads it from the disk, if the file system can; what it has in memory already stays as it is.
void PreferHugePages(const Weights& weights);

}  // namespace sparsecc
