#include "noise.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define CSG_EDGE_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define CSG_EDGE_CLONES
#endif

namespace csg_edge {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr double kPi = 3.141592653589793, kLog2 = 0.6931471805599453;
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

uint64_t bits_of(double value) {
  uint64_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

double with_bits(uint64_t bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The same by series, many at a time: angles in (0, 1) as cosine and sine of 2 pi angle, each at most 2^-44 of the radius
// away from that of `exact`. Where four times as much would make another float32, `unsure` is 1.
CSG_EDGE_CLONES int approximate(const double* radius, const double* angle, float* first, float* second, uint8_t* unsure) {
  constexpr uint64_t kOne = 0x3FF0000000000000, kRootHalf = 0x3FE6A09E667F3BCD, kExponent = 0xFFF0000000000000;
  constexpr double kWhole = 0x1p52, kRound = 0x1.8p52;  // their lowest bit counts ones
  int any = 0;
#pragma omp simd reduction(| : any)
  for (size_t i = 0; i < kPiece; ++i) {
    // radius = 2^k m with m from sqrt(1/2) to sqrt(2); log m = 2 artanh((m - 1) / (m + 1)).
    const uint64_t bits = bits_of(radius[i]), above = bits + (kOne - kRootHalf);
    const double k = with_bits((above >> 52) | bits_of(kWhole)) - (kWhole + 1023.0);
    const double m = with_bits(bits - ((above & kExponent) - kOne));
    const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
    const double series = 1 + s2 * (1 / 3. + s2 * (1 / 5. + s2 * (1 / 7. + s2 * (1 / 9. + s2 * (1 / 11. + s2 * (1 / 13. +
        s2 * (1 / 15.)))))));
    const double length = std::sqrt(-2.0 * (k * kLog2 + 2.0 * s * series));
    // 4 angle = quarter + rest, rest from -1/2 to 1/2: Taylor series of pi / 2 rest.
    const double turns = 4.0 * angle[i], shifted = turns + kRound;
    const uint64_t quarter = bits_of(shifted);
    const double x = (turns - (shifted - kRound)) * (kPi / 2), x2 = x * x;
    const double sine = x * (1 - x2 * (1 / 6.) * (1 - x2 * (1 / 20.) * (1 - x2 * (1 / 42.) * (1 - x2 * (1 / 72.) *
        (1 - x2 * (1 / 110.) * (1 - x2 * (1 / 156.)))))));
    const double cosine = 1 - x2 * (1 / 2.) * (1 - x2 * (1 / 12.) * (1 - x2 * (1 / 30.) * (1 - x2 * (1 / 56.) *
        (1 - x2 * (1 / 90.) * (1 - x2 * (1 / 132.) * (1 - x2 * (1 / 182.)))))));
    const bool odd = (quarter & 1) != 0;
    const double across = with_bits(bits_of(odd ? sine : cosine) ^ (((quarter + 1) & 2) << 62));
    const double along = with_bits(bits_of(odd ? cosine : sine) ^ ((quarter & 2) << 62));
    const double one = length * across, other = length * along, margin = length * 0x1p-42;
    first[i] = float(one - margin);
    second[i] = float(other - margin);
    unsure[i] = uint8_t(first[i] != float(one + margin)) | uint8_t(second[i] != float(other + margin));
    any |= unsure[i];
  }
  return any;
}

void normals(const double* radius, const double* angle, float* first, float* second) {
  uint8_t unsure[kPiece];
  if (approximate(radius, angle, first, second, unsure) == 0) return;
  for (size_t i = 0; i < kPiece; ++i) {
    if (unsure[i] != 0) exact(radius[i], angle[i], first[i], second[i]);
  }
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
