#include "golden.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "failure.h"
#include "grey_png.h"

namespace csg_edge {
namespace {

constexpr double kPi = 3.141592653589793;
constexpr int kNotGiven = 255;

// A pair of PNG files as csg_edge/conditions/fibre_files.py writes it: degrees + 90, and coherence x 255.
std::vector<float> read_field(const Bundle& bundle, const std::string& name) {
  const auto [direction, coherence] = both_files(name);
  const auto levels = read_grey_png(bundle.file(direction), kFibreSide, kFibreSide);
  const auto lengths = read_grey_png(bundle.file(coherence), kFibreSide, kFibreSide);
  const size_t cells = levels.size();
  std::vector<float> field(kFibreChannels * cells);
  for (size_t i = 0; i < cells; ++i) {
    if (levels[i] > 179 && levels[i] != kNotGiven) {
      bad_bundle(bundle.file(direction).string() + ": level " + std::to_string(levels[i]) + ", not degrees + 90; export it again");
    }
    const bool given = levels[i] != kNotGiven;
    const double angle = 2.0 * (double(levels[i]) - 90.0) * (kPi / 180.0);
    const double length = given ? lengths[i] / 255.0 : 0.0;
    field[i] = float(length * std::cos(angle));
    field[cells + i] = float(length * std::sin(angle));
    field[2 * cells + i] = given ? 1.0F : 0.0F;
  }
  return field;
}

}  // namespace

CaseData read_case(const Bundle& bundle, const GoldenCase& one, int64_t steps) {
  const auto [height, width] = bundle.manifest.image_size;
  CaseData found;
  found.mask = read_grey_png(bundle.file(one.mask), height, width);
  found.context = read_grey_png(bundle.file(one.context), height, width);
  found.expected = read_grey_png(bundle.file(one.expected.at(std::to_string(steps))), height, width);
  if (one.fibre) found.field = read_field(bundle, *one.fibre);
  if (one.fibre_used) found.used = read_field(bundle, *one.fibre_used);
  return found;
}

Difference difference(const std::vector<uint8_t>& image, const std::vector<uint8_t>& expected, int64_t levels) {
  Difference found;
  uint64_t squares = 0, near = 0;
  for (size_t i = 0; i < image.size(); ++i) {
    const int apart = std::abs(int(image[i]) - int(expected[i]));
    found.max_levels = std::max(found.max_levels, apart);
    squares += uint64_t(apart) * uint64_t(apart);
    near += apart <= levels ? 1 : 0;
  }
  const double count = double(image.size());
  found.psnr = squares == 0 ? std::numeric_limits<double>::infinity() : 10.0 * std::log10(255.0 * 255.0 * count / double(squares));
  found.share = double(near) / count;
  return found;
}

bool within(const Difference& found, const Tolerance& tolerance) {
  return found.psnr >= tolerance.psnr && found.share >= tolerance.share;
}

double field_difference(const std::vector<float>& field, const std::vector<float>& expected) {
  const size_t cells = size_t(kFibreSide) * kFibreSide;
  double sum = 0;
  for (size_t i = 0; i < 2 * cells; ++i) {
    const double apart = double(field[i]) - double(expected[i]);
    sum += apart * apart;
  }
  return std::sqrt(sum / double(cells));
}

}  // namespace csg_edge
