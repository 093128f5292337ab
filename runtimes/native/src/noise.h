// Seeds become noise here: the same numbers as csg_edge/noise.py, bit for bit.
#pragma once

#include <cstddef>
#include <cstdint>

namespace csg_edge {

// `count` standard normal values of a seed.
void noise_for(uint64_t seed, float* values, size_t count);

}  // namespace csg_edge
