// Compares sets of kernels with sums in double, and with the portable set where both have to do the same.
//
//   kernel_check [NAME...]     the sets of these names; without any, all that this processor supports
//
// Whatever the kernels read ends where memory ends, so that reading a byte too many ends the program.
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "half.h"
#include "kernels/kernels.h"
#include "weights.h"

namespace sparsecc {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr double kSmallestSteps = kMaxGroup * 0x1p-149;  // rounding each term to the smallest number above 0
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr uint16_t kHalfInfinity = 0x7C00, kHalfNaN = 0x7E00, kSmallestHalf = 1, kLargestHalf = 0x7BFF;
constexpr const char* kTypeNames[kWeightTypes] = {"float32", "float16", "int8", "int4"};
constexpr const char* kSetNames[] = {"portable", "avx2", "avx512", "neon", "neon_dotprod"};

// Memory that is followed by a page that can be neither read nor written.
template <typename Element>
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t pages = (count * sizeof(Element) + page - 1) / page * page;
    size_ = pages + page;
    void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED || mprotect(static_cast<char*>(memory) + pages, page, PROT_NONE) != 0) std::abort();
    start_ = static_cast<char*>(memory);
    data_ = reinterpret_cast<Element*>(start_ + pages) - count;
  }
  ~Guarded() { munmap(start_, size_); }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;

  Element* data() { return data_; }
  const Element* data() const { return data_; }
  Element& operator[](size_t i) { return data_[i]; }
  const Element& operator[](size_t i) const { return data_[i]; }
  Element* begin() { return data_; }
  Element* end() { return data_ + count_; }

 private:
  size_t count_, size_;
  char* start_;
  Element* data_;
};

using Random = std::mt19937;

float Normal(Random& random) { return std::normal_distribution<float>()(random); }
size_t Below(Random& random, size_t count) { return std::uniform_int_distribution<size_t>(0, count - 1)(random); }
// float16 of 2^-14 to 2^1, of either sign.
uint16_t UsualHalf(Random& random) {
  return static_cast<uint16_t>(Below(random, 2) << 15 | (1024 + Below(random, 15360)));
}

struct Shape {
  WeightType type;
  size_t channels, columns, block;
};

bool IsQuantized(WeightType type) { return type == kInt8 || type == kInt4; }

// Random weights of a shape.
class Matrix {
 public:
  Matrix(const Shape& shape, Random& random)
      : shape_(shape),
        bytes_((shape.channels * shape.columns * BitsPerWeight(shape.type) + 7) / 8),
        scales_(IsQuantized(shape.type) ? shape.channels * ((shape.columns + shape.block - 1) / shape.block) : 0) {
    for (uint8_t& byte : bytes_) byte = static_cast<uint8_t>(random());
    for (uint16_t& scale : scales_) scale = UsualHalf(random);
    for (size_t i = 0; i < shape.channels * shape.columns; ++i) {
      const float value = Normal(random);
      const uint16_t half = UsualHalf(random);
      if (shape.type == kFloat32) std::memcpy(bytes_.data() + 4 * i, &value, 4);
      if (shape.type == kFloat16) std::memcpy(bytes_.data() + 2 * i, &half, 2);
    }
  }

  Weights weights() const {
    return {shape_.type,
            bytes_.data(),
            shape_.channels,
            shape_.columns,
            IsQuantized(shape_.type) ? scales_.data() : nullptr,
            IsQuantized(shape_.type) ? shape_.block : 1};
  }

  // The scale of a weight; 1 of weights that are not quantized.
  double Scale(size_t channel, size_t column) const {
    return IsQuantized(shape_.type) ? HalfToFloat(*ScalesAt(weights(), channel, column)) : 1.0;
  }

  // The weight before it is scaled.
  double Unscaled(size_t channel, size_t column) const {
    const size_t i = channel * shape_.columns + column;
    const uint8_t* bytes = bytes_.data();
    float value = 0;
    uint16_t half = 0;
    switch (shape_.type) {
      case kFloat32:
        std::memcpy(&value, bytes + 4 * i, 4);
        return value;
      case kFloat16:
        std::memcpy(&half, bytes + 2 * i, 2);
        return HalfToFloat(half);
      case kInt8:
        return static_cast<int8_t>(bytes[i]);
      default: {
        const int nibble = i % 2 == 0 ? bytes[i / 2] & 15 : bytes[i / 2] >> 4;
        return nibble < 8 ? nibble : nibble - 16;
      }
    }
  }

  uint16_t* scales() { return scales_.data(); }
  size_t scale_count() { return static_cast<size_t>(scales_.end() - scales_.begin()); }

 private:
  Shape shape_;
  Guarded<uint8_t> bytes_;
  Guarded<uint16_t> scales_;
};

struct Group {
  RowGroup rows;
  size_t channels[kMaxGroup];
};

// `count` random channels as the product passes them on. If they fill the group, `more` follow.
Group RandomGroup(const Matrix& matrix, size_t count, size_t more, Random& random) {
  const Weights weights = matrix.weights();
  Group group = {};
  group.rows.count = count;
  group.rows.block = weights.block;
  const size_t available = count == kMaxGroup ? count + more : count;
  size_t channel = 0;
  for (size_t i = 0; i < 2 * kMaxGroup; ++i) {
    // Past the last one, it is repeated. The last row of all is always among them: it ends where memory ends.
    if (i < available) channel = i + 1 == count ? weights.channels - 1 : Below(random, weights.channels);
    if (i < count) group.channels[i] = channel;
    if (i < kMaxGroup + kRowsAhead) group.rows.rows[i] = RowAt(weights, channel, 0);
    if (weights.scales != nullptr) group.rows.scales[i] = ScalesAt(weights, channel, 0);
  }
  for (size_t i = 0; i < count; ++i) group.rows.values[i] = Normal(random);
  return group;
}

struct Expected {
  double sum;
  double tolerance;
};

// What adding a group to `start` gives in one column, and how far a kernel may be from it: the roundings of the terms,
// and for quantized weights half a unit of the integer multipliers for each weight.
Expected ExpectedSum(const Matrix& matrix, const Group& group, size_t column, double start) {
  double sum = start, terms = std::abs(start), integers = 0, largest_value = 0, largest_scale = 0;
  for (size_t i = 0; i < group.rows.count; ++i) {
    const double value = group.rows.values[i], scale = matrix.Scale(group.channels[i], column);
    const double weight = matrix.Unscaled(group.channels[i], column), term = value * scale * weight;
    sum += term;
    terms += std::abs(term);
    integers += std::abs(weight);
    largest_value = std::max(largest_value, std::abs(value));
    largest_scale = std::max(largest_scale, std::abs(scale));
  }
  const WeightType type = matrix.weights().type;
  const double largest_multiplier = type == kInt4 ? 127.0 : 32767.0;
  const double unit = IsQuantized(type) ? largest_value * largest_scale / largest_multiplier : 0.0;
  return {sum, 2e-6 * terms + 0.51 * unit * integers};
}

class Check {
 public:
  Check(const char* name, const Kernels& kernels) : name_(name), kernels_(kernels) {}

  bool Run() {
    CheckUsualRows();
    CheckUnusualValues();
    CheckUnpacking();
    CheckPanels();
    if (kernels_.multiply_integers != nullptr) {
      CheckIntegerUnpacking();
      CheckIntegerPanels();
    }
    CheckSwiGLU();
    std::printf("%s: %zu results, %zu wrong\n", name_, results_, wrong_);
    return wrong_ == 0;
  }

 private:
  template <typename Description>
  void Expect(bool is_right, const Description& what, double is, double expected) {
    ++results_;
    if (is_right) return;
    if (++wrong_ <= 20) std::printf("%s: %s is %.9g, not %.9g\n", name_, what().c_str(), is, expected);
  }

  static std::string Describe(const Shape& shape, size_t count, Stripe stripe, size_t column) {
    return std::string(kTypeNames[shape.type]) + " [" + std::to_string(shape.channels) + ", " +
           std::to_string(shape.columns) + "] in blocks of " + std::to_string(shape.block) + ", " +
           std::to_string(count) + " rows, columns " + std::to_string(stripe.begin) + " to " +
           std::to_string(stripe.end) + ": " + std::to_string(column);
  }

  void CheckRows(const Shape& shape, size_t count, size_t more, Stripe stripe) {
    const Matrix matrix(shape, random_);
    const Group group = RandomGroup(matrix, count, more, random_);
    Guarded<float> out(shape.columns);
    for (float& value : out) value = Normal(random_);
    const std::vector<float> before(out.begin(), out.end());
    kernels_.add_rows[shape.type](group.rows, stripe, out.data());
    for (size_t c = 0; c < shape.columns; ++c) {
      const bool is_inside = c >= stripe.begin && c < stripe.end;
      const Expected expected = is_inside ? ExpectedSum(matrix, group, c, before[c]) : Expected{before[c], 0.0};
      Expect(
          std::abs(out[c] - expected.sum) <= expected.tolerance, [&] { return Describe(shape, count, stripe, c); },
          out[c], expected.sum);
    }
  }

  // All counts, and stripes of all lengths modulo a vector's.
  void CheckUsualRows() {
    for (WeightType type : {kFloat32, kFloat16, kInt8, kInt4}) {
      for (size_t block : IsQuantized(type) ? std::vector<size_t>{2, 16, 32, 48, 64, 96, 128, 256, 1024, 2048}
                                            : std::vector<size_t>{1}) {
        for (size_t columns :
             {2, 6, 16, 30, 32, 34, 62, 64, 66, 94, 126, 128, 130, 160, 222, 256, 258, 320, 514, 1024, 1990}) {
          const size_t count = 1 + Below(random_, kMaxGroup);
          CheckRows({type, 1 + Below(random_, 40), columns, block}, count, Below(random_, kMaxGroup), {0, columns});
        }
        for (size_t count = 1; count <= kMaxGroup; ++count) {
          CheckRows({type, 40, 130, block}, count, Below(random_, 2 * kMaxGroup), {0, 130});
        }
        const size_t columns = 2048 + kMaxStripe + 200, step = std::max<size_t>(2, block);
        for (int repeat = 0; repeat < 4; ++repeat) {
          const size_t begin = Below(random_, 2048 / step) * step;
          const size_t end = std::min(columns, begin + 2 + 2 * Below(random_, kMaxStripe / 2));
          CheckRows({type, 5, columns, block}, 1 + Below(random_, kMaxGroup), 0, {begin, end});
        }
        const size_t begin = 2048 / step * step;
        CheckRows({type, 5, columns, block}, kMaxGroup, kMaxGroup, {begin, begin + kMaxStripe});
        CheckRows({type, 5, columns, block}, kMaxGroup, kMaxGroup, {begin, std::min(columns, begin + kMaxStripe - 6)});
      }
      if (!IsQuantized(type)) {
        for (size_t columns = 1; columns <= 200; ++columns) CheckRows({type, 3, columns, 1}, 11, 3, {0, columns});
      }
    }
  }

  static bool IsSame(float is, float expected, double tolerance) {
    if (std::isnan(expected)) return std::isnan(is);
    return is == expected || std::abs(static_cast<double>(is) - expected) <= tolerance;
  }

  // Values and scales that integers cannot represent: everything is as in plain C++.
  void CheckUnusual(const Shape& shape, float value, uint16_t scale, float factor = 1.0f) {
    Matrix matrix(shape, random_);
    Group group = RandomGroup(matrix, 19, 0, random_);
    for (float& each : group.rows.values) each *= factor;
    group.rows.values[Below(random_, group.rows.count)] = value;
    for (size_t i = 0; i < matrix.scale_count(); i += 7) matrix.scales()[i] = scale;
    Guarded<float> out(shape.columns);
    std::fill(out.begin(), out.end(), 0.0f);
    std::vector<float> expected(shape.columns, 0.0f);
    kernels_.add_rows[shape.type](group.rows, {0, shape.columns}, out.data());
    kPortableKernels.add_rows[shape.type](group.rows, {0, shape.columns}, expected.data());
    for (size_t c = 0; c < shape.columns; ++c) {
      const double tolerance = 2 * ExpectedSum(matrix, group, c, 0.0).tolerance + kSmallestSteps;
      const bool is_same = IsSame(out[c], expected[c], std::isfinite(tolerance) ? tolerance : 0.0);
      Expect(is_same, [&] { return Describe(shape, 19, {0, shape.columns}, c); }, out[c], expected[c]);
    }
  }

  void CheckUnusualValues() {
    const uint16_t usual = 0x3C00;
    for (WeightType type : {kFloat32, kFloat16, kInt8, kInt4}) {
      for (size_t block : {32, 64, 128}) {
        for (float value : {0.0f, -0.0f, kInfinity, -kInfinity, kNaN, 1e-45f, 1e-33f, 1e-30f, 1e29f, 1e31f}) {
          CheckUnusual({type, 23, 320, block}, value, usual);
        }
        for (uint16_t scale : {kHalfInfinity, kHalfNaN, kSmallestHalf, kLargestHalf, uint16_t{0}, uint16_t{0x8000}}) {
          CheckUnusual({type, 23, 320, block}, 1.0f, scale);
        }
        for (float factor : {1e-44f, 1e-38f, 1e-35f, 1e-30f, 1e-24f, 1e-15f, 1e15f, 1e24f}) {
          CheckUnusual({type, 23, 320, block}, factor, usual, factor);
        }
      }
    }
    Matrix matrix({kInt4, 9, 128, 32}, random_);
    std::fill_n(matrix.scales(), matrix.scale_count(), uint16_t{0});
    const Group group = RandomGroup(matrix, 9, 0, random_);
    std::vector<float> out(128, 3.0f);
    kernels_.add_rows[kInt4](group.rows, {0, 128}, out.data());
    for (float value : out)
      Expect(value == 3.0f, [] { return std::string("int4 whose scales are all 0"); }, value, 3.0);
  }

  void CheckUnpacking(const Shape& shape, size_t count, Stripe stripe) {
    const Matrix matrix(shape, random_);
    std::vector<int64_t> indices(count);
    for (int64_t& index : indices) index = static_cast<int64_t>(Below(random_, shape.channels));
    indices.back() = static_cast<int64_t>(shape.channels) - 1;
    const size_t panels = (stripe.end - stripe.begin + kPanelColumns - 1) / kPanelColumns;
    Guarded<float> is(panels * count * kPanelColumns), expected(panels * count * kPanelColumns);
    std::fill(is.begin(), is.end(), NAN);
    std::fill(expected.begin(), expected.end(), NAN);
    const size_t first = Below(random_, count + 1), last = first + Below(random_, count + 1 - first);
    kernels_.unpack_panels[shape.type](matrix.weights(), indices.data(), count, {first, last}, stripe, is.data());
    for (size_t i = 0; i < panels * count * kPanelColumns; ++i) {
      const size_t k = i / kPanelColumns % count;
      Expect(
          std::isnan(is[i]) == (k < first || k >= last),
          [&] { return "a channel that is unpacked or not, of " + Describe(shape, count, stripe, i); }, is[i], NAN);
    }
    kernels_.unpack_panels[shape.type](matrix.weights(), indices.data(), count, {0, first}, stripe, is.data());
    kernels_.unpack_panels[shape.type](matrix.weights(), indices.data(), count, {last, count}, stripe, is.data());
    kPortableKernels.unpack_panels[shape.type](matrix.weights(), indices.data(), count, {0, count}, stripe,
                                               expected.data());
    for (size_t i = 0; i < panels * count * kPanelColumns; ++i) {
      Expect(is[i] == expected[i], [&] { return "panel of " + Describe(shape, count, stripe, i); }, is[i], expected[i]);
    }
  }

  void CheckUnpacking() {
    for (WeightType type : {kFloat32, kFloat16, kInt8, kInt4}) {
      for (size_t block : {2, 15, 16, 32, 64, 128}) {
        for (size_t columns : {1, 2, 15, 16, 17, 31, 32, 48, 63, 64, 65, 128, 135, 256}) {
          for (size_t begin = 0; begin < columns; begin += kUnpackedColumns) {
            const Stripe stripe = {begin, std::min(begin + kUnpackedColumns, columns)};
            CheckUnpacking({type, 1 + Below(random_, 30), columns, block}, 1 + Below(random_, 20), stripe);
          }
        }
        CheckUnpacking({type, 9, 256, block}, 5, {8, 24});
        CheckUnpacking({type, 9, 255, block}, 5, {3, 19});
      }
    }
  }

  void CheckPanel(size_t rows, size_t columns, size_t count) {
    const size_t values_stride = count + Below(random_, 5), stride = columns + Below(random_, 5);
    const size_t panel_count = (columns + kPanelColumns - 1) / kPanelColumns;
    Guarded<float> values((rows - 1) * values_stride + count), panels(panel_count * count * kPanelColumns);
    Guarded<float> out((rows - 1) * stride + columns);
    for (Guarded<float>* numbers : {&values, &panels, &out}) {
      for (float& number : *numbers) number = Normal(random_);
    }
    const std::vector<float> before(out.begin(), out.end());
    const Matrix next({kFloat32, 9, 40, 1}, random_);
    const Weights weights = next.weights();
    const int64_t rows_ahead[] = {8, 0, 3};
    PanelsAhead ahead;
    ahead.weights = &weights;
    ahead.next = std::begin(rows_ahead);
    ahead.end = std::end(rows_ahead);
    ahead.bytes = 160;
    ahead.lines_per_fetch = 2;
    kernels_.multiply_panels(
        {values.data(), values_stride, rows, panels.data(), count, out.data(), stride, columns, ahead});
    const size_t fetched = std::min(2 * (count / kFetchChannels), 3 * size_t{3});  // lines, of three rows of three
    Expect(
        static_cast<size_t>(ahead.next - std::begin(rows_ahead)) == (fetched + 2) / 3,
        [&] { return "rows fetched beside " + std::to_string(count) + " channels"; },
        static_cast<double>(ahead.next - std::begin(rows_ahead)), static_cast<double>((fetched + 2) / 3));
    for (size_t i = 0; i < before.size(); ++i) {
      const size_t row = i / stride, column = i % stride;
      double expected = before[i], terms = std::abs(expected);
      for (size_t k = 0; k < count && column < columns; ++k) {
        const size_t at = (column / kPanelColumns * count + k) * kPanelColumns + column % kPanelColumns;
        const double term = static_cast<double>(values[row * values_stride + k]) * panels[at];
        expected += term;
        terms += std::abs(term);
      }
      const double tolerance = column < columns ? 1e-6 * terms * std::sqrt(1.0 + static_cast<double>(count)) : 0.0;
      Expect(
          std::abs(out[i] - expected) <= tolerance,
          [&] {
            return "product of " + std::to_string(rows) + " rows, " + std::to_string(columns) + " columns and " +
                   std::to_string(count) + " channels";
          },
          out[i], expected);
    }
  }

  void CheckPanels() {
    for (size_t rows = 1; rows <= kPanelRows; ++rows) {
      for (size_t columns = 1; columns <= kernels_.columns_at_once; ++columns) {
        for (size_t count : {1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 67, 256}) CheckPanel(rows, columns, count);
      }
    }
  }

  void CheckIntegerUnpacking(const Shape& shape, size_t count, Stripe stripe) {
    const Matrix matrix(shape, random_);
    std::vector<int64_t> indices(count);
    for (int64_t& index : indices) index = static_cast<int64_t>(Below(random_, shape.channels));
    indices.back() = static_cast<int64_t>(shape.channels) - 1;
    const size_t panels = (stripe.end - stripe.begin + kPanelColumns - 1) / kPanelColumns, pairs = (count + 1) / 2;
    Guarded<int16_t> is(panels * pairs * kPanelColumns * 2);
    kernels_.unpack_integers[shape.type](matrix.weights(), indices.data(), count, stripe, is.data());
    for (size_t i = 0; i < panels * pairs * kPanelColumns * 2; ++i) {
      const size_t panel = i / (pairs * kPanelColumns * 2), k = i / (kPanelColumns * 2) % pairs * 2 + i % 2;
      const size_t column = stripe.begin + panel * kPanelColumns + i / 2 % kPanelColumns;
      const bool is_weight = k < count && column < stripe.end;
      const double weight = is_weight ? matrix.Unscaled(static_cast<size_t>(indices[k]), column) : 0.0;
      const double expected = weight * (shape.type == kInt4 ? kInt4Factor : 1);
      Expect(is[i] == expected, [&] { return "integer of " + Describe(shape, count, stripe, i); }, is[i], expected);
    }
  }

  void CheckIntegerUnpacking() {
    for (WeightType type : {kInt8, kInt4}) {
      for (size_t columns : {2, 14, 16, 18, 30, 32, 48, 62, 64, 66, 126, 128, 130, 256}) {
        for (size_t begin = 0; begin < columns; begin += kUnpackedColumns) {
          const Stripe stripe = {begin, std::min(begin + kUnpackedColumns, columns)};
          CheckIntegerUnpacking({type, 1 + Below(random_, 30), columns, 16}, 1 + Below(random_, 20), stripe);
        }
      }
      CheckIntegerUnpacking({type, 300, 256, 32}, kTileChannels, {128, 256});
    }
  }

  // Integers of magnitudes up to `largest`, or all as large, which is as far from 0 as sums can get.
  void CheckIntegerPanel(size_t rows, size_t columns, size_t pairs, bool is_extreme) {
    const auto integer = [&](int largest) {
      const int random = static_cast<int>(Below(random_, static_cast<size_t>(2 * largest + 1))) - largest;
      return static_cast<int16_t>(is_extreme ? largest : random);
    };
    alignas(64) int16_t values[kTilePairs][kPanelRows][2], scales[kTilePairs][2];
    for (auto& pair : values) {
      for (auto& row : pair) row[0] = integer(32767), row[1] = integer(32767);
    }
    for (auto& pair : scales) pair[0] = integer(32767), pair[1] = integer(32767);
    const size_t panels = (columns + kPanelColumns - 1) / kPanelColumns, stride = columns + Below(random_, 5);
    Guarded<int16_t> weights(panels * pairs * kPanelColumns * 2);
    for (int16_t& weight : weights) weight = is_extreme ? int16_t{-128} : integer(127);
    Guarded<float> units(rows), out((rows - 1) * stride + columns);
    for (float& unit : units) unit = 1e-3f * Normal(random_);
    for (float& value : out) value = Normal(random_);
    const std::vector<float> before(out.begin(), out.end());
    kernels_.multiply_integers(
        {values[0][0], scales[0], units.data(), 0.01f, rows, weights.data(), pairs, out.data(), stride, columns});
    for (size_t i = 0; i < before.size(); ++i) {
      const size_t row = i / stride, column = i % stride;
      double sum = 0;
      for (size_t k = 0; k < 2 * pairs && column < columns; ++k) {
        const int multiplier = (values[k / 2][row][k % 2] * scales[k / 2][k % 2] + (1 << 14)) >> 15;
        const size_t panel = column / kPanelColumns;
        sum += multiplier * weights[((panel * pairs + k / 2) * kPanelColumns + column % kPanelColumns) * 2 + k % 2];
      }
      const double term = column < columns ? sum * 0.01 * units[row] : 0.0, expected = before[i] + term;
      const double tolerance = column < columns ? 1e-6 * (std::abs(term) + std::abs(before[i])) : 0.0;
      Expect(
          std::abs(out[i] - expected) <= tolerance,
          [&] {
            return "integer product of " + std::to_string(rows) + " rows, " + std::to_string(columns) +
                   " columns and " + std::to_string(pairs) + " pairs";
          },
          out[i], expected);
    }
  }

  void CheckIntegerPanels() {
    for (size_t rows = 1; rows <= kPanelRows; ++rows) {
      for (size_t columns : {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 63, 64, 127, 128}) {
        for (size_t pairs : {size_t{1}, size_t{2}, size_t{3}, size_t{7}, size_t{8}, size_t{9}, kTilePairs}) {
          CheckIntegerPanel(rows, columns, pairs, false);
        }
      }
      CheckIntegerPanel(rows, 128, kTilePairs, true);
    }
  }

  // Gates of all magnitudes and some special ones, in rows of all lengths modulo a vector's.
  void CheckSwiGLU() {
    const float special[] = {0.0f,  -0.0f, kInfinity, -kInfinity, kNaN,    -kNaN, 1e-45f, -1e-45f, 1e-30f, 86.9f,
                             87.1f, 88.3f, -86.9f,    -87.1f,     -88.38f, 89.1f, -89.1f, 1e30f,   -1e30f, -3.4e38f};
    for (size_t count = 1; count <= 200; ++count) {
      Guarded<float> gate(count), up(count), out(count);
      for (float& value : gate) value = Normal(random_) * static_cast<float>(std::pow(10.0, Below(random_, 4) - 1.0));
      for (float& value : up) value = Normal(random_);
      for (size_t i = 0; i < count / 3; ++i) gate[Below(random_, count)] = special[Below(random_, std::size(special))];
      kernels_.apply_swiglu(gate.data(), up.data(), count, out.data());
      for (size_t c = 0; c < count; ++c) {
        const double wide = gate[c];
        const double expected = wide / (1 + std::exp(-wide)) * up[c];
        const double tolerance = 1e-6 * std::abs(expected) + 1e-35 * std::abs(up[c]);
        Expect(
            IsSame(out[c], static_cast<float>(expected), tolerance),
            [&] { return "SwiGLU of " + std::to_string(gate[c]) + " and " + std::to_string(up[c]); }, out[c], expected);
      }
    }
  }

  const char* name_;
  const Kernels& kernels_;
  Random random_{20240229};
  size_t results_ = 0, wrong_ = 0;
};

// SPARSECC_KERNELS names a set; one that is not to be had, like none, means the fastest.
bool IsSelected(const char* name) {
  unsetenv("SPARSECC_KERNELS");
  const Kernels* fastest = &FastestKernels();
  setenv("SPARSECC_KERNELS", name, 1);
  const Kernels* named = FindKernels(name);
  return &FastestKernels() == (named == nullptr ? fastest : named);
}

int Main(int argument_count, char** arguments) {
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  std::vector<const char*> names(arguments + 1, arguments + argument_count);
  if (names.empty()) {
    std::copy_if(std::begin(kSetNames), std::end(kSetNames), std::back_inserter(names), FindKernels);
  }
  bool is_right = std::all_of(std::begin(kSetNames), std::end(kSetNames), IsSelected) && IsSelected("");
  if (!is_right) std::printf("SPARSECC_KERNELS selects another set than it names\n");
  for (const char* name : names) {
    const Kernels* kernels = FindKernels(name);
    if (kernels == nullptr) std::printf("%s: not supported\n", name);
    is_right = kernels != nullptr && Check(name, *kernels).Run() && is_right;
  }
  return is_right ? 0 : 1;
}

}  // namespace
}  // namespace sparsecc

int main(int argument_count, char** arguments) { return sparsecc::Main(argument_count, arguments); }
