// What this machine is and grants (csg_edge/machine.py).
#pragma once

#include <cstdint>
#include <string>

namespace csg_edge {

// The name of this computer in its network.
std::string node();

// Name and instruction sets of the processor: what compiled code and its results may depend on.
std::string processor();

// Threads for an engine where nobody says how many; 0: as the runtime has it, which looks at affinity but not at quotas.
int default_threads();

}  // namespace csg_edge
