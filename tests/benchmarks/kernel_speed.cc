// How fast each set of kernels adds rows of weights, from the cache and from memory, and multiplies panels.
//
//   kernel_speed THREADS NAME...
//
// In the cache, a thread adds the same 32 rows of 1024 columns again and again. From memory, each thread adds half of
// the rows of its own matrices [2048, 8192], chosen at random; a plain read of the same rows, which only adds up their
// bytes one row after another and asks for none ahead of time, is what they should at least keep up with.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "kernels/kernels.h"
#include "weights.h"

namespace sparsecc {
namespace {

constexpr size_t kChannels = 2048, kColumns = 8192;
constexpr size_t kBytesPerThread = size_t{192} << 20;
constexpr const char* kTypeNames[kWeightTypes] = {"float32", "float16", "int8", "int4"};

// As large models are stored.
constexpr size_t BlockSize(WeightType type) { return BitsPerWeight(type) < 16 ? 64 : 1; }

double Seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Weights begin with a page, as in a model's file.
struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
std::unique_ptr<uint8_t, Free> Pages(size_t bytes) {
  std::unique_ptr<uint8_t, Free> pages(static_cast<uint8_t*>(std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096)));
  std::memset(pages.get(), 0x3A, bytes);
  return pages;
}

struct Matrices {
  Matrices(WeightType type, size_t bytes, size_t columns)
      : data(Pages(bytes)), scales(bytes * 8 / BitsPerWeight(type) / BlockSize(type), 0x2C00) {
    weights = {type,
               data.get(),
               bytes * 8 / BitsPerWeight(type) / columns,
               columns,
               BitsPerWeight(type) < 16 ? scales.data() : nullptr,
               BlockSize(type)};
  }
  std::unique_ptr<uint8_t, Free> data;
  std::vector<uint16_t> scales;
  Weights weights;
};

// As the product passes rows on: groups of kMaxGroup, in stripes.
void AddRowsOf(const Kernels& kernels, const Weights& weights, const std::vector<size_t>& active, float* out) {
  const size_t width =
      std::min(weights.columns,
               BitsPerWeight(weights.type) < 16 ? kernels.stripe_bytes * 8 / BitsPerWeight(weights.type) : 4096);
  for (size_t first = 0; first < active.size(); first += kMaxGroup) {
    RowGroup group = {};
    group.count = std::min(kMaxGroup, active.size() - first);
    group.block = weights.block;
    for (size_t i = 0; i < 2 * kMaxGroup; ++i) {
      const size_t channel = active[std::min(first + i, active.size() - 1)];
      if (i < kMaxGroup + kRowsAhead) group.rows[i] = RowAt(weights, channel, 0);
      if (weights.scales != nullptr) group.scales[i] = ScalesAt(weights, channel, 0);
    }
    for (size_t i = 0; i < group.count; ++i) group.values[i] = static_cast<float>(i % 7) - 3.1f;
    for (size_t begin = 0; begin < weights.columns; begin += width) {
      kernels.add_rows[weights.type](group, {begin, std::min(begin + width, weights.columns)}, out);
    }
  }
}

uint64_t SumOfWords(const Weights& weights, const std::vector<size_t>& active) {
  const size_t words = weights.columns * BitsPerWeight(weights.type) / 64;
  uint64_t sum = 0;
  for (const size_t channel : active) {
    const auto* row = static_cast<const uint64_t*>(RowAt(weights, channel, 0));
    for (size_t i = 0; i < words; ++i) sum += row[i];
  }
  return sum;
}

// Half of the rows, chosen at random.
std::vector<size_t> ActiveRows(size_t channels) {
  std::vector<size_t> active(channels);
  std::iota(active.begin(), active.end(), size_t{0});
  std::mt19937 random(1);
  active.erase(std::remove_if(active.begin(), active.end(), [&](size_t) { return random() % 2 == 0; }), active.end());
  return active;
}

// GB/s of the fastest of five passes of all threads together, each of which visits its rows.
template <typename Visit>
double FromMemory(std::vector<Matrices>& matrices, const Visit& visit) {
  const Weights& weights = matrices.front().weights;  // all have as many rows
  const std::vector<size_t> active = ActiveRows(weights.channels);
  double best = 1e30;
  for (int pass = 0; pass < 5; ++pass) {
    std::vector<std::thread> threads;
    const double start = Seconds();
    for (Matrices& own : matrices) threads.emplace_back([&] { visit(own.weights, active); });
    for (std::thread& thread : threads) thread.join();
    best = std::min(best, Seconds() - start);
  }
  const size_t bytes = matrices.size() * active.size() * weights.columns * BitsPerWeight(weights.type) / 8;
  return static_cast<double>(bytes) / best / 1e9;
}

double ReadFromMemory(std::vector<Matrices>& matrices) {
  std::atomic<uint64_t> sum = 0;  // so that the compiler cannot leave the reading out
  return FromMemory(
      matrices, [&](const Weights& weights, const std::vector<size_t>& active) { sum += SumOfWords(weights, active); });
}

double AddFromMemory(const Kernels& kernels, std::vector<Matrices>& matrices) {
  return FromMemory(matrices, [&](const Weights& weights, const std::vector<size_t>& active) {
    std::vector<float> out(weights.columns);
    AddRowsOf(kernels, weights, active, out.data());
  });
}

double InCache(const Kernels& kernels, WeightType type) {
  const size_t bytes = kMaxGroup * 1024 * BitsPerWeight(type) / 8;
  const Matrices own(type, bytes, 1024);
  std::vector<size_t> active(kMaxGroup);
  std::iota(active.begin(), active.end(), size_t{0});
  std::vector<float> out(1024);
  double best = 1e30;
  for (int pass = 0; pass < 20; ++pass) {
    const double start = Seconds();
    for (int i = 0; i < 500; ++i) AddRowsOf(kernels, own.weights, active, out.data());
    best = std::min(best, Seconds() - start);
  }
  return 500 * static_cast<double>(bytes) / best / 1e9;
}

double PanelGflops(const Kernels& kernels) {
  constexpr size_t kCount = 256;
  std::vector<float> values(kCount * kPanelRows, 1.5f), out(kPanelRows * kernels.columns_at_once);
  std::vector<float> memory(kCount * kernels.columns_at_once + 16, 0.25f);
  float* panels = memory.data();
  while (reinterpret_cast<uintptr_t>(panels) % 64 != 0) ++panels;
  PanelsAhead ahead;
  double best = 1e30;
  for (int pass = 0; pass < 20; ++pass) {
    const double start = Seconds();
    for (int i = 0; i < 2000; ++i) {
      kernels.multiply_panels({values.data(), kCount, kPanelRows, panels, kCount, out.data(), kernels.columns_at_once,
                               kernels.columns_at_once, ahead});
    }
    best = std::min(best, Seconds() - start);
  }
  return 2000 * 2.0 * kCount * kPanelRows * static_cast<double>(kernels.columns_at_once) / best / 1e9;
}

double IntegerGops(const Kernels& kernels) {
  alignas(64) static int16_t values[kTilePairs * kPanelRows * 2], scales[kTilePairs * 2];
  alignas(64) static int16_t panels[kTilePairs * kUnpackedColumns * 2];
  std::fill(std::begin(values), std::end(values), int16_t{1000});
  std::fill(std::begin(scales), std::end(scales), int16_t{1000});
  std::fill(std::begin(panels), std::end(panels), int16_t{3});
  std::vector<float> units(kPanelRows, 1.0f), out(kPanelRows * kUnpackedColumns);
  constexpr size_t kBlockColumns = 32;
  double best = 1e30;
  for (int pass = 0; pass < 20; ++pass) {
    const double start = Seconds();
    for (int i = 0; i < 1000; ++i) {
      kernels.multiply_integers({values, scales, units.data(), 1.0f, kPanelRows, panels, kTilePairs, out.data(),
                                 kUnpackedColumns, kBlockColumns});
    }
    best = std::min(best, Seconds() - start);
  }
  return 1000 * 2.0 * kTileChannels * kPanelRows * kBlockColumns / best / 1e9;
}

void Run(size_t threads, const std::vector<const char*>& names) {
  for (const char* name : names) {
    const Kernels* kernels = FindKernels(name);
    if (kernels == nullptr) continue;
    std::printf("%-13s panel %6.1f Gflop/s", name, PanelGflops(*kernels));
    if (kernels->multiply_integers != nullptr) std::printf(", of integers %6.1f Gop/s", IntegerGops(*kernels));
    for (WeightType type : {kFloat32, kFloat16, kInt8, kInt4}) {
      std::printf("  %s in cache %5.1f GB/s", kTypeNames[type], InCache(*kernels, type));
    }
    std::printf("\n");
  }
  for (WeightType type : {kFloat32, kFloat16, kInt8, kInt4}) {
    std::vector<Matrices> one, all;
    for (size_t i = 0; i < threads; ++i) all.emplace_back(type, kBytesPerThread, kColumns);
    one.emplace_back(type, kBytesPerThread, kColumns);
    for (int round = 0; round < 2; ++round) {
      std::printf("%-13s %s from memory: 1 thread %5.1f GB/s, %zu threads %5.1f GB/s\n", "plain read", kTypeNames[type],
                  ReadFromMemory(one), threads, ReadFromMemory(all));
      for (const char* name : names) {
        const Kernels* kernels = FindKernels(name);
        if (kernels == nullptr) continue;
        std::printf("%-13s %s from memory: 1 thread %5.1f GB/s, %zu threads %5.1f GB/s\n", name, kTypeNames[type],
                    AddFromMemory(*kernels, one), threads, AddFromMemory(*kernels, all));
      }
    }
  }
}

}  // namespace
}  // namespace sparsecc

int main(int argument_count, char** arguments) {
  if (argument_count < 3) return std::fprintf(stderr, "kernel_speed THREADS NAME...\n"), 2;
  sparsecc::Run(static_cast<size_t>(std::atoi(arguments[1])), {arguments + 2, arguments + argument_count});
  return 0;
}
