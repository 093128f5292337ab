#include "machine.h"

#include <sched.h>
#include <sys/utsname.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <vector>

#include "files.h"

namespace csg_edge {
namespace {

std::string stripped(const std::string& text) {
  const size_t start = text.find_first_not_of(" \t");
  return start == std::string::npos ? "" : text.substr(start, text.find_last_not_of(" \t") - start + 1);
}

// The lines of the first processor.
std::map<std::string, std::string> cpuinfo() {
  std::map<std::string, std::string> found;
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line) && !line.empty();) {
    const size_t colon = line.find(':');
    if (colon != std::string::npos) found[stripped(line.substr(0, colon))] = stripped(line.substr(colon + 1));
  }
  return found;
}

int allowed_processors() {
  cpu_set_t set;
  return sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

// Processors' time that a folder of control groups grants; infinite for no limit. As the kernel documents it: `cpu.max`
// (cgroup v2), `cpu.cfs_quota_us` and `cpu.cfs_period_us` (v1).
double granted(const fs::path& folder) {
  double least = std::numeric_limits<double>::infinity();
  std::ifstream both(folder / "cpu.max");
  std::string quota;
  double period = 0;
  if (both >> quota >> period && quota != "max" && period > 0) least = std::atof(quota.c_str()) / period;
  double time = 0;
  if (std::ifstream(folder / "cpu.cfs_quota_us") >> time && time >= 0 &&
      std::ifstream(folder / "cpu.cfs_period_us") >> period && period > 0) {
    least = std::min(least, time / period);
  }
  return least;
}

// Of this process's control groups and of their parents.
double processor_quota() {
  const fs::path tree = "/sys/fs/cgroup";
  double least = std::numeric_limits<double>::infinity();
  std::ifstream file("/proc/self/cgroup");
  for (std::string line; std::getline(file, line);) {
    std::istringstream parts(line);
    std::string number, controllers, path;
    if (!std::getline(parts, number, ':') || !std::getline(parts, controllers, ':') || !std::getline(parts, path)) continue;
    std::vector<fs::path> roots;
    if (number == "0") {
      roots = {tree, tree / "unified"};
    } else if (("," + controllers + ",").find(",cpu,") != std::string::npos) {
      roots = {tree / controllers, tree / "cpu"};
    }
    for (const fs::path& root : roots) {
      fs::path folder = root;
      least = std::min(least, granted(folder));
      for (const fs::path& part : fs::path(path).relative_path()) least = std::min(least, granted(folder /= part));
    }
  }
  return least;
}

}  // namespace

std::string node() {
  utsname about{};
  return uname(&about) == 0 ? about.nodename : "";
}

std::string processor() {
  const auto about = cpuinfo();
  const auto found = [&](const char* key) {
    const auto item = about.find(key);
    return item == about.end() ? std::string() : item->second;
  };
  std::istringstream text(found("flags"));
  std::vector<std::string> flags;
  for (std::string flag; text >> flag;) flags.push_back(flag);
  std::sort(flags.begin(), flags.end());
  std::string joined;
  for (const std::string& flag : flags) joined += (joined.empty() ? "" : " ") + flag;
  const std::string name = found("model name");
  utsname system{};
  uname(&system);
  return std::string(system.machine) + " " + (name.empty() ? "unknown" : name) + " " + sha256_of(joined).substr(0, 16);
}

int default_threads() {
  const double quota = processor_quota();
  return quota >= allowed_processors() ? 0 : std::max(1, int(std::ceil(quota)));
}

}  // namespace csg_edge
