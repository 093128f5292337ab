#include "noise.h"

#include <algorithm>
#include <array>
#include <cmath>

#ifdef CSG_EDGE_LIBMVEC
// libm's functions, told that there are vectors of them.
extern "C" {
__attribute__((simd("notinbranch"), const)) double vector_log(double) __asm__("log");
__attribute__((simd("notinbranch"), const)) double vector_tan(double) __asm__("tan");
}
#endif

namespace csg_edge {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr double kPi = 3.141592653589793;
constexpr size_t kPiece = 512;

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

// `kPiece` uniform numbers in (0, 1), from the one at `index` on, counted from 0; each counter from 1 on yields four.
void uniforms(uint64_t seed, size_t index, double* out) {
  size_t counter = index / 4 + 1, skipped = index % 4;
  for (size_t done = 0; done < kPiece; skipped = 0) {
    const std::array<uint64_t, 4> words = philox(counter++, seed);
    for (size_t k = skipped; k < 4 && done < kPiece; ++k) out[done++] = (double(int64_t(words[k] >> 11)) + 0.5) * 0x1p-53;
  }
}

// Box-Muller in float64. NumPy's logarithm and tangent may differ from libm's in the last bit of a float64; rounded to
// float32 none of 4,194,304 values differed. This file is compiled without fused multiply-add, which would.
void exact(double radius, double angle, float& first, float& second) {
  const double tangent = std::tan(angle * kPi);
  const double square = tangent * tangent;
  const double scale = std::sqrt(std::log(radius) * -2.0) / (1.0 + square);
  first = float(scale * (1.0 - square));
  second = float(tangent * (2.0 * scale));
}

#ifdef CSG_EDGE_LIBMVEC
// The same with libmvec, many at a time. Its functions are right to 4 units in the last place, so a value is at most
// 2^-48 radii away from that of `exact`. Where four times as much would make another float32, `unsure` is 1.
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))  //
int approximate(const double* radius, const double* angle, float* first, float* second, uint8_t* unsure) {
  int any = 0;
#pragma omp simd reduction(| : any)
  for (size_t i = 0; i < kPiece; ++i) {
    const double tangent = vector_tan(angle[i] * kPi);
    const double square = tangent * tangent;
    const double length = std::sqrt(vector_log(radius[i]) * -2.0);
    const double scale = length / (1.0 + square);
    const double one = scale * (1.0 - square), other = tangent * (2.0 * scale), margin = length * 0x1p-46;
    first[i] = float(one - margin);
    second[i] = float(other - margin);
    unsure[i] = uint8_t(first[i] != float(one + margin)) | uint8_t(second[i] != float(other + margin));
    any |= unsure[i];
  }
  return any;
}
#endif

void normals(const double* radius, const double* angle, float* first, float* second) {
#ifdef CSG_EDGE_LIBMVEC
  uint8_t unsure[kPiece];
  if (approximate(radius, angle, first, second, unsure) == 0) return;
  for (size_t i = 0; i < kPiece; ++i) {
    if (unsure[i] != 0) exact(radius[i], angle[i], first[i], second[i]);
  }
#else
  for (size_t i = 0; i < kPiece; ++i) exact(radius[i], angle[i], first[i], second[i]);
#endif
}

}  // namespace

// The first half of the uniform numbers are the radii, the second half the angles.
void noise_for(uint64_t seed, float* values, size_t count) {
  const size_t half = (count + 1) / 2;
  double radius[kPiece], angle[kPiece];
  float first[kPiece], second[kPiece];
  for (size_t start = 0; start < half; start += kPiece) {
    uniforms(seed, start, radius);
    uniforms(seed, half + start, angle);
    normals(radius, angle, first, second);
    std::copy_n(first, std::min(kPiece, half - start), values + start);
    std::copy_n(second, std::min(kPiece, count - half - std::min(start, count - half)), values + half + start);
  }
}

}  // namespace csg_edge
