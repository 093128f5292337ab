#include "noise.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace csg_edge {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr double kPi = 3.141592653589793;

// Philox4x64-10 (Salmon et al., SC 2011, 10.1145/2063384.2063405): the words of one counter under the key (seed, 0).
std::array<uint64_t, 4> philox(uint64_t counter, uint64_t seed) {
  constexpr uint64_t kMultiply0 = 0xD2E7470EE14C6C93, kMultiply1 = 0xCA5A826395121157;
  constexpr uint64_t kWeyl0 = 0x9E3779B97F4A7C15, kWeyl1 = 0xBB67AE8584CAA73B;
  std::array<uint64_t, 4> word = {counter, 0, 0, 0};
  uint64_t key0 = seed, key1 = 0;
  for (int round = 0; round < 10; ++round) {
    const auto product0 = static_cast<Wide>(kMultiply0) * word[0];
    const auto product1 = static_cast<Wide>(kMultiply1) * word[2];
    word = {uint64_t(product1 >> 64) ^ word[1] ^ key0, uint64_t(product1), uint64_t(product0 >> 64) ^ word[3] ^ key1,
            uint64_t(product0)};
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return word;
}

// `count` uniform numbers in (0, 1) from the one at `index` on, counted from 0; each counter from 1 on yields four.
void uniforms(uint64_t seed, size_t index, size_t count, double* out) {
  for (size_t done = 0; done < count;) {
    const std::array<uint64_t, 4> words = philox((index + done) / 4 + 1, seed);
    for (size_t k = (index + done) % 4; k < 4 && done < count; ++k) out[done++] = (double(words[k] >> 11) + 0.5) * 0x1p-53;
  }
}

}  // namespace

// Box-Muller in float64: the first half of the uniforms are the radii, the second half the angles. NumPy's logarithm and
// tangent may differ from libm's in the last bit of a float64; rounded to float32 none of 4,194,304 values differed. This
// file is compiled without fused multiply-add, which would.
void noise_for(uint64_t seed, float* values, size_t count) {
  constexpr size_t kPiece = 512;
  const size_t half = (count + 1) / 2;
  double radius[kPiece], angle[kPiece];
  for (size_t start = 0; start < half; start += kPiece) {
    const size_t size = std::min(kPiece, half - start);
    uniforms(seed, start, size, radius);
    uniforms(seed, half + start, size, angle);
    for (size_t i = 0; i < size; ++i) {
      const double tangent = std::tan(angle[i] * kPi);
      const double square = tangent * tangent;
      const double scale = std::sqrt(std::log(radius[i]) * -2.0) / (1.0 + square);
      values[start + i] = float(scale * (1.0 - square));
      if (half + start + i < count) values[half + start + i] = float(tangent * (2.0 * scale));
    }
  }
}

}  // namespace csg_edge
