#include "loading.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "failure.h"
#include "machine.h"
#include "python_json.h"

namespace csg_edge {
namespace {

using Json = nlohmann::json;

constexpr int kRaceRounds = 9;
const std::set<std::string> kPrecisions = {"auto", "fp32", "bf16", "fp16", "int8"};

struct Candidate {
  Engine engine;
  bool listed = true;  // whether the bundle lists it for that target
};

// What is wrong with an engine's golden image, and why it is not the faster one; empty if nothing is.
struct Verdict {
  std::string failure;
  std::optional<std::string> slower;  // none: it was not raced
};

std::string joined(const std::vector<std::string>& parts, const char* between) {
  std::string found;
  for (const std::string& part : parts) found += (found.empty() ? "" : between) + part;
  return found;
}

std::string fixed(double value, int digits) {
  char text[64];
  std::snprintf(text, sizeof text, "%.*f", digits, value);
  return text;
}

// The job of a golden case, into `image`.
Job golden_job(const CaseData& data, uint64_t seed, std::vector<uint8_t>& image) {
  Job job;
  job.mask = data.mask.data();
  job.context = data.context.data();
  job.seed = seed;
  job.image = image.data();
  return job;
}

class Loader {
 public:
  Loader(const Bundle& bundle, const Options& options, Backends& backends)
      : bundle_(bundle), options_(options), backends_(backends), cache_(options.cache) {}

  Opened load() {
    const std::vector<Candidate> found = candidates();
    // What was asked for by name is taken even if another engine is faster, but not if its images are wrong.
    const bool by_name = options_.runtime != "auto" && found.size() == 1;
    csg_edge_status status = CSG_EDGE_UNAVAILABLE;
    for (const Candidate& candidate : found) {
      const Engine& engine = candidate.engine;
      if (std::string reason = why_not(engine); !reason.empty()) {
        pass_over(engine, reason);
        continue;
      }
      const std::optional<Engine> rival = by_name ? std::nullopt : rival_of(engine, found);
      const std::optional<Verdict> remembered = options_.proven ? remember(engine) : std::nullopt;
      const bool known = remembered && (!rival || !remembered->failure.empty() || remembered->slower);
      std::string wrong = known ? judged(*remembered, by_name) : "";
      if (wrong.empty()) {
        std::unique_ptr<OpenEngine> open;
        try {
          open = open_engine(engine);
        } catch (const Failure& failure) {
          if (by_name && candidate.listed) throw;
          if (failure.status == CSG_EDGE_TOO_LITTLE_MEMORY) status = failure.status;
          pass_over(engine, failure.what());
          continue;
        }
        if (options_.proven && !known) wrong = judged(prove(engine, *open, rival), by_name);
        if (wrong.empty()) {
          const std::string reason = !candidate.listed ? "the portable graph"
                                     : by_name         ? "as asked for"
                                                       : "the first in the bundle's order that runs here";
          const std::string proof = !options_.proven ? ", not proven"
                                    : known          ? ", golden case passed before"
                                                     : ", golden case passed just now";
          std::vector<std::string> parts = {engine.target + ": " + reason + proof};
          for (const std::string& text : passed_over_) parts.push_back("not " + text);
          return {engine, std::move(open), joined(parts, "; "), memory_estimate(bundle_, engine)};
        }
      }
      if (by_name && candidate.listed) {
        engine_failed(engine.target + ": " + wrong + "; choose another engine, or use it as it is with `unproven`");
      }
      pass_over(engine, wrong);
    }
    throw Failure(status, "no engine can run here. " + joined(passed_over_, "; "));
  }

 private:
  void note(csg_edge_log_level level, const std::string& text) const {
    if (options_.log) options_.log(level, text);
  }

  void pass_over(const Engine& engine, const std::string& reason) {
    passed_over_.push_back(engine.target + ": " + reason);
    note(CSG_EDGE_LOG_INFO, "passed over " + passed_over_.back());
  }

  // The engines that fit the options, in the bundle's order of preference.
  std::vector<Candidate> candidates() {
    if (kPrecisions.count(options_.precision) == 0) {
      refuse("precision '" + options_.precision + "' is unknown; choose auto, fp32, bf16, fp16, int8");
    }
    const Manifest& manifest = bundle_.manifest;
    std::vector<Candidate> at_steps, fitting;
    std::set<std::string> offered;
    for (const Engine& engine : manifest.engines) {
      offered.insert(std::to_string(engine.steps));
      if (engine.steps != options_.steps) continue;
      at_steps.push_back({engine});
      const Target target = Target::parse(engine.target);
      const auto fits = [](const std::string& wanted, const std::string& have) { return wanted == "auto" || wanted == have; };
      if (fits(options_.runtime, target.runtime) && fits(options_.device, target.device) &&
          fits(options_.precision, target.precision)) {
        fitting.push_back({engine});
      }
    }
    if (at_steps.empty()) {
      refuse("steps " + std::to_string(options_.steps) + ": bundle " + manifest.name + " has steps " +
             joined({offered.begin(), offered.end()}, ", "));
    }
    if (!fitting.empty()) return fitting;
    return {portable(at_steps)};
  }

  // A runtime named explicitly that the bundle has no engine for runs the bundle's portable graph, if it can.
  Candidate portable(const std::vector<Candidate>& at_steps) {
    std::string reason;
    if (options_.runtime != "auto") {
      const std::string arithmetic = options_.precision == "auto" ? "fp32" : options_.precision;
      const std::string device = options_.device == "auto" ? "CPU" : options_.device;
      Backend* backend = backends_.find(options_.runtime, &reason);
      for (const Candidate& candidate : at_steps) {
        const Engine& engine = candidate.engine;
        if (backend == nullptr || !engine.built_with.empty() || !backend->portable(path_of(engine.file).extension().string()) ||
            Target::parse(engine.target).precision != arithmetic) {
          continue;
        }
        reason = backend->why_not(device, arithmetic);
        if (!reason.empty()) break;
        Engine other = engine;
        other.target = options_.runtime + ":" + device + ":" + arithmetic;
        return {other, false};
      }
    }
    std::vector<std::string> offered;
    for (const Engine& engine : bundle_.manifest.engines) {
      if (std::find(offered.begin(), offered.end(), engine.target) == offered.end()) offered.push_back(engine.target);
    }
    refuse("bundle " + bundle_.manifest.name + " has no engine for " + options_.runtime + ":" + options_.device + ":" +
           options_.precision + "; it has " + joined(offered, ", ") + (reason.empty() ? "" : " (" + reason + ")"));
  }

  // Empty if this machine can run the engine, else the reason with the remedy.
  std::string why_not(const Engine& engine) {
    const Target target = Target::parse(engine.target);
    std::string reason;
    Backend* backend = backends_.find(target.runtime, &reason);
    if (backend == nullptr) return reason;
    reason = backend->why_not(target.device, target.precision);
    if (!reason.empty()) return reason;
    const std::string here = target.runtime + " " + backend->version();
    if (!engine.built_with.empty() && engine.built_with != here) {
      return "built with " + engine.built_with + ", here is " + here + "; csg-edge build BUNDLE --target " + engine.target;
    }
    return "";
  }

  // For an int8 engine: the next one in 16 or 32 bits for the same runtime and device that runs here.
  std::optional<Engine> rival_of(const Engine& engine, const std::vector<Candidate>& found) {
    const Target target = Target::parse(engine.target);
    if (target.precision != "int8") return std::nullopt;
    for (const Candidate& candidate : found) {
      const Target other = Target::parse(candidate.engine.target);
      if (other.runtime == target.runtime && other.device == target.device && other.precision != "int8" &&
          why_not(candidate.engine).empty()) {
        return candidate.engine;
      }
    }
    return std::nullopt;
  }

  std::unique_ptr<OpenEngine> open_engine(const Engine& engine) {
    const uint64_t need = memory_estimate(bundle_, engine);
    if (options_.memory_limit != 0 && need > options_.memory_limit) {
      throw Failure(CSG_EDGE_TOO_LITTLE_MEMORY, "needs some " + std::to_string(need >> 20) + " MB, and memory_limit is " +
                                                    std::to_string(options_.memory_limit >> 20) + " MB; raise it");
    }
    const Target target = Target::parse(engine.target);
    std::string why;
    Backend* backend = backends_.find(target.runtime, &why);
    const int threads = options_.threads > 0 ? options_.threads : default_threads();
    note(CSG_EDGE_LOG_DEBUG, "opening " + engine.target + " from " + engine.file);
    const OpenRequest request{bundle_.manifest, engine, bundle_.file(engine.file), target, threads, cache_, identity(engine)};
    return std::make_unique<OpenEngine>(bundle_.manifest, backend->open(request));
  }

  // What stands for the content of an engine: the hashes of its file and of the files beside it (its weights).
  std::string identity(const Engine& engine) const {
    Json beside = Json::object();
    const fs::path folder = path_of(engine.file).parent_path();
    for (const auto& [name, entry] : bundle_.manifest.files) {
      if (path_of(name).parent_path() == folder) beside[name] = entry.sha256;
    }
    return key_of({{"file", engine.file}, {"files", beside}});
  }

  std::string verdict_key(const Engine& engine) {
    std::vector<std::string> golden;
    for (const auto& [name, entry] : bundle_.manifest.files) {
      if (name.rfind("golden/", 0) == 0) golden.push_back(entry.sha256);
    }
    std::sort(golden.begin(), golden.end());
    const std::string runtime = Target::parse(engine.target).runtime;
    std::string why;
    return key_of({{"kind", "verdict"},
                   {"engine", identity(engine)},
                   {"target", engine.target},
                   {"steps", engine.steps},
                   {"golden", golden},
                   {"tolerance", Json::parse(engine.tolerance.key)},
                   {"runtime", backends_.find(runtime, &why)->version()},
                   {"machine", {node(), processor()}}});
  }

  std::optional<Verdict> remember(const Engine& engine) {
    const auto blob = cache_.load(verdict_key(engine));
    if (!blob) return std::nullopt;
    const Json note = Json::parse(blob->view(), nullptr, false);
    if (!note.is_object() || note.count("failure") == 0 || !note["failure"].is_string()) return std::nullopt;
    Verdict found{note["failure"].get<std::string>(), std::nullopt};
    if (note.count("slower") != 0 && note["slower"].is_string()) found.slower = note["slower"].get<std::string>();
    return found;
  }

  // Make the first golden image and, if it is right, race the rival; the verdict is remembered.
  Verdict prove(const Engine& engine, OpenEngine& open, const std::optional<Engine>& rival) {
    Verdict verdict{golden_failure(engine, open), std::nullopt};
    if (verdict.failure.empty() && rival) {
      verdict.slower = "";
      try {
        const auto other = open_engine(*rival);
        verdict.slower = slower_here(engine, open, *rival, *other);
      } catch (const Failure&) {  // one that does not open is no rival
      }
    }
    Json note = {{"target", engine.target}, {"failure", verdict.failure}};
    if (verdict.slower) note["slower"] = *verdict.slower;
    cache_.store(verdict_key(engine), note.dump());
    return verdict;
  }

  static std::string judged(const Verdict& verdict, bool by_name) {
    if (!verdict.failure.empty() || by_name) return verdict.failure;
    return verdict.slower.value_or("");
  }

  std::string golden_failure(const Engine& engine, OpenEngine& open) const {
    if (bundle_.manifest.golden.empty()) return "the bundle has no golden cases; export it again";
    const GoldenCase& one = bundle_.manifest.golden.front();
    const CaseResult found = run_case(bundle_, engine, open, one);
    if (found.passed) return "";
    return "fails golden case " + one.name + " here (" + std::to_string(found.difference.max_levels) +
           " grey levels off, PSNR " + fixed(found.difference.psnr, 1) + " dB); see csg-edge verify";
  }

  // Empty if an engine's quickest image, made in turns with a rival, is quicker than the rival's.
  std::string slower_here(const Engine& engine, OpenEngine& open, const Engine& rival, OpenEngine& other) const {
    const GoldenCase& one = bundle_.manifest.golden.front();
    const CaseData data = read_case(bundle_, one, engine.steps);
    std::vector<uint8_t> image(bundle_.manifest.pixels());
    const Job job = golden_job(data, one.seed, image);
    double quickest[2] = {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::infinity()};
    for (int lap = 0; lap <= kRaceRounds; ++lap) {
      for (int which = 0; which < 2; ++which) {
        const auto start = std::chrono::steady_clock::now();
        (which == 0 ? open : other).make(job);
        const double took = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
        if (lap != 0) quickest[which] = std::min(quickest[which], took);  // the first warms up
      }
    }
    if (quickest[0] < quickest[1]) return "";
    return "no faster here than " + rival.target + " (" + fixed(quickest[0], 1) + " ms against " + fixed(quickest[1], 1) + " ms)";
  }

  const Bundle& bundle_;
  const Options& options_;
  Backends& backends_;
  Cache cache_;
  std::vector<std::string> passed_over_;
};

}  // namespace

Opened open_bundle(const Bundle& bundle, const Options& options, Backends& backends) {
  return Loader(bundle, options, backends).load();
}

uint64_t memory_estimate(const Bundle& bundle, const Engine& engine) {
  const fs::path file = path_of(engine.file);
  const std::string weights = file.extension() == ".xml" ? fs::path(file).replace_extension(".bin").generic_string()
                                                         : (file.parent_path() / "weights.safetensors").generic_string();
  uint64_t bytes = 0;
  for (const std::string& name : {engine.file, weights}) {
    const auto item = bundle.manifest.files.find(name);
    if (item != bundle.manifest.files.end()) bytes += item->second.size;
  }
  // Measured with OpenVINO, compiling without a cache, in int8, bf16 and fp32: 139, 201 and 217 MB of 11, 18 and 18.
  return (uint64_t{64} << 20) + 9 * bytes;
}

CaseResult run_case(const Bundle& bundle, const Engine& engine, OpenEngine& open, const GoldenCase& one) {
  const CaseData data = read_case(bundle, one, engine.steps);
  std::vector<uint8_t> image(bundle.manifest.pixels());
  std::vector<float> used(bundle.manifest.fibre_values());
  Job job = golden_job(data, one.seed, image);
  job.fibre = data.field.empty() ? nullptr : data.field.data();
  job.fibre_used = used.empty() ? nullptr : used.data();
  open.make(job);
  CaseResult found{difference(image, data.expected, engine.tolerance.levels), true};
  const bool close = data.used.empty() || used.empty() || field_difference(used, data.used) <= kFieldTolerance;
  found.passed = close && within(found.difference, engine.tolerance);
  return found;
}

}  // namespace csg_edge
