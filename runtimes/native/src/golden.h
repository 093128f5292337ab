// Golden cases: inputs, expected image, and how far an image is from it (csg_edge/bundle/golden.py).
#pragma once

#include <cstdint>
#include <vector>

#include "bundle.h"

namespace csg_edge {

struct CaseData {
  std::vector<uint8_t> mask, context, expected;
  std::vector<float> field, used;  // empty where nothing is given, or the bundle takes none
};

struct Difference {
  int max_levels = 0;
  double psnr = 0;  // dB; infinite if equal
  double share = 0; // of pixels within the tolerance's levels
};

CaseData read_case(const Bundle& bundle, const GoldenCase& one, int64_t steps);

Difference difference(const std::vector<uint8_t>& image, const std::vector<uint8_t>& expected, int64_t levels);

bool within(const Difference& found, const Tolerance& tolerance);

// Root mean square distance of the direction vectors of two fibre fields, 0 to 2.
double field_difference(const std::vector<float>& field, const std::vector<float>& expected);

constexpr double kFieldTolerance = 0.08;

}  // namespace csg_edge
