// Opening a bundle: the first of its engines that fits, runs here and is proven here. The same order, proof and memory of
// verdicts as csg_edge/generation (loading, selection, proof).
#pragma once

#include <functional>
#include <string>

#include "backends.h"
#include "bundle.h"
#include "cache.h"
#include "csg_edge.h"
#include "golden.h"
#include "open_engine.h"

namespace csg_edge {

using Log = std::function<void(csg_edge_log_level, const std::string&)>;

struct Options {
  std::string runtime = "auto", device = "auto", precision = "auto";
  int64_t steps = 1;
  int threads = 0;  // 0: by affinity and quota
  fs::path cache;   // empty: none
  uint64_t memory_limit = 0;  // 0: none
  bool proven = true;
  Log log;
};

struct Opened {
  Engine engine;
  std::unique_ptr<OpenEngine> open;
  std::string choice;  // why this one, and why not others
  uint64_t memory_estimate = 0;
};

// Throws Failure. `bundle` must outlive what is returned.
Opened open_bundle(const Bundle& bundle, const Options& options, Backends& backends);

// Bytes that opening an engine adds to the process, by estimate.
uint64_t memory_estimate(const Bundle& bundle, const Engine& engine);

struct CaseResult {
  Difference difference;
  bool passed = false;
};

// Make the image of a golden case and compare.
CaseResult run_case(const Bundle& bundle, const Engine& engine, OpenEngine& open, const GoldenCase& one);

}  // namespace csg_edge
