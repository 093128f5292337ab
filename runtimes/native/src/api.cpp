// The C surface: structures of any known size in, statuses and sentences out, no exception beyond this file.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <new>

#include "cancellation.h"
#include "csg_edge.h"
#include "failure.h"
#include "loading.h"
#include "noise.h"

using csg_edge::Failure;

struct csg_edge_cancellation {
  csg_edge::Cancellation inner;
};

struct csg_edge_generator {
  mutable std::mutex mutex;  // of `error` alone
  std::string error;
  csg_edge::Backends backends;  // outlives what they opened
  csg_edge::Bundle bundle;
  csg_edge::Opened opened;

  csg_edge_status failed(csg_edge_status status, const char* text) noexcept {
    try {
      const std::lock_guard<std::mutex> lock(mutex);
      error = text;
    } catch (const std::bad_alloc&) {  // the status has to do
    }
    return status;
  }
};

namespace {

// What a caller of another version handed over: its fields, and the defaults of those it does not know.
template <typename T>
T known_part(const T* given, const T& defaults, const char* what) {
  if (given == nullptr) return defaults;
  if (given->size < sizeof(size_t)) csg_edge::refuse(std::string(what) + ": size is not set; begin with the INIT macro");
  T found = defaults;
  std::memcpy(static_cast<void*>(&found), given, std::min(given->size, sizeof(T)));
  found.size = sizeof(T);
  return found;
}

template <typename T>
void give_back(const T& found, T* wanted) {
  const size_t size = std::min(wanted->size, sizeof(T));
  std::memcpy(reinterpret_cast<char*>(wanted) + sizeof(size_t), reinterpret_cast<const char*>(&found) + sizeof(size_t),
              size - sizeof(size_t));
}

template <typename T>
void check_size(const T* wanted, const char* what) {
  if (wanted == nullptr || wanted->size < sizeof(size_t)) {
    csg_edge::refuse(std::string(what) + ": NULL, or its size is not set; begin with the INIT macro");
  }
}

template <typename Work>
csg_edge_status guarded(csg_edge_generator* generator, Work work) noexcept {
  try {
    work();
    return CSG_EDGE_OK;
  } catch (const Failure& failure) {
    return generator->failed(failure.status, failure.what());
  } catch (const std::bad_alloc&) {
    return generator->failed(CSG_EDGE_TOO_LITTLE_MEMORY, "memory ran out; free some");
  } catch (const std::exception& error) {
    return generator->failed(CSG_EDGE_INTERNAL, error.what());
  } catch (...) {
    return generator->failed(CSG_EDGE_INTERNAL, "an unknown failure; please report it");
  }
}

csg_edge::OpenEngine& engine_of(csg_edge_generator* generator) {
  if (generator->opened.open == nullptr) csg_edge::refuse("this handle holds nothing but an error; open the bundle again");
  return *generator->opened.open;
}

csg_edge::Options options_of(const csg_edge_options* given) {
  const csg_edge_options known = known_part(given, csg_edge_options CSG_EDGE_OPTIONS_INIT, "options");
  if (known.steps < 0 || known.threads < 0) csg_edge::refuse("steps and threads: give 0 or more");
  csg_edge::Options found;
  const auto text = [](const char* value) { return value == nullptr ? std::string("auto") : std::string(value); };
  found.runtime = text(known.runtime);
  found.device = text(known.device);
  found.precision = text(known.precision);
  found.steps = known.steps == 0 ? 1 : known.steps;
  found.threads = known.threads;
  found.cache = known.cache == nullptr ? csg_edge::Cache::user_folder() : csg_edge::path_of(known.cache);
  found.memory_limit = known.memory_limit;
  found.proven = known.unproven == 0;
  if (known.log != nullptr) {
    found.log = [known](csg_edge_log_level level, const std::string& line) { known.log(level, line.c_str(), known.log_data); };
  }
  return found;
}

csg_edge::Job job_of(const csg_edge_job* given) {
  if (given == nullptr) csg_edge::refuse("job: NULL; give a job");
  const csg_edge_job known = known_part(given, csg_edge_job CSG_EDGE_JOB_INIT, "job");
  csg_edge::Job job;
  job.mask = known.mask;
  job.mask_stride = known.mask_stride;
  job.context = known.context;
  job.context_stride = known.context_stride;
  job.seed = known.seed;
  job.noise = known.noise;
  job.fibre = known.fibre;
  job.image = known.image;
  job.image_stride = known.image_stride;
  job.fibre_used = known.fibre_used;
  job.timeout_ms = known.timeout_ms;
  job.cancellation = known.cancellation == nullptr ? nullptr : &known.cancellation->inner;
  return job;
}

#define CSG_EDGE_TEXT(value) #value
#define CSG_EDGE_VERSION_TEXT(major, minor, patch) CSG_EDGE_TEXT(major) "." CSG_EDGE_TEXT(minor) "." CSG_EDGE_TEXT(patch)

}  // namespace

extern "C" {

const char* csg_edge_version(void) {
  return CSG_EDGE_VERSION_TEXT(CSG_EDGE_VERSION_MAJOR, CSG_EDGE_VERSION_MINOR, CSG_EDGE_VERSION_PATCH);
}

const char* csg_edge_status_text(csg_edge_status status) {
  switch (status) {
    case CSG_EDGE_OK: return "done";
    case CSG_EDGE_INVALID_ARGUMENT: return "an argument that is not taken";
    case CSG_EDGE_BAD_BUNDLE: return "a missing or damaged bundle";
    case CSG_EDGE_UNAVAILABLE: return "no engine can run here";
    case CSG_EDGE_ENGINE_FAILED: return "the engine failed";
    case CSG_EDGE_CANCELLED: return "cancelled";
    case CSG_EDGE_TIMED_OUT: return "timed out";
    case CSG_EDGE_TOO_LITTLE_MEMORY: return "too little memory";
    case CSG_EDGE_INTERNAL: return "a fault of this library";
    default: return "an unknown status";
  }
}

csg_edge_status csg_edge_open(const char* bundle, const csg_edge_options* options, csg_edge_generator** generator) {
  if (generator == nullptr) return CSG_EDGE_INVALID_ARGUMENT;
  *generator = new (std::nothrow) csg_edge_generator;
  if (*generator == nullptr) return CSG_EDGE_TOO_LITTLE_MEMORY;
  csg_edge_generator& handle = **generator;
  return guarded(*generator, [&] {
    if (bundle == nullptr) csg_edge::refuse("bundle: NULL; give a bundle folder");
    const csg_edge::Options known = options_of(options);
    handle.bundle = csg_edge::read_bundle(csg_edge::path_of(bundle));
    handle.opened = csg_edge::open_bundle(handle.bundle, known, handle.backends);
    if (known.log) known.log(CSG_EDGE_LOG_INFO, handle.opened.choice);
  });
}

void csg_edge_close(csg_edge_generator* generator) { delete generator; }

size_t csg_edge_last_error(const csg_edge_generator* generator, char* text, size_t capacity) {
  if (generator == nullptr) return 0;
  const std::lock_guard<std::mutex> lock(generator->mutex);
  if (text != nullptr && capacity > 0) {
    const size_t count = std::min(capacity - 1, generator->error.size());
    std::memcpy(text, generator->error.data(), count);
    text[count] = '\0';
  }
  return generator->error.size();
}

csg_edge_status csg_edge_get_info(csg_edge_generator* generator, csg_edge_info* info) {
  if (generator == nullptr) return CSG_EDGE_INVALID_ARGUMENT;
  return guarded(generator, [&] {
    engine_of(generator);
    check_size(info, "info");
    const csg_edge::Manifest& manifest = generator->bundle.manifest;
    csg_edge_info found = CSG_EDGE_INFO_INIT;
    found.height = manifest.image_size[0];
    found.width = manifest.image_size[1];
    found.noise_channels = manifest.noise_shape[0];
    found.noise_height = manifest.noise_shape[1];
    found.noise_width = manifest.noise_shape[2];
    if (manifest.fibre) {
      found.fibre_channels = csg_edge::kFibreChannels;
      found.fibre_rows = found.fibre_columns = csg_edge::kFibreSide;
    }
    found.classes = int32_t(manifest.labels.size());
    found.steps = int32_t(generator->opened.engine.steps);
    found.format = manifest.format;
    found.memory_estimate = generator->opened.memory_estimate;
    give_back(found, info);
  });
}

const char* csg_edge_class_name(const csg_edge_generator* generator, int32_t index) {
  if (generator == nullptr || index < 0 || size_t(index) >= generator->bundle.manifest.labels.size()) return nullptr;
  return generator->bundle.manifest.labels[size_t(index)].c_str();
}

const char* csg_edge_engine(const csg_edge_generator* generator) {
  return generator == nullptr ? "" : generator->opened.engine.target.c_str();
}

const char* csg_edge_choice(const csg_edge_generator* generator) {
  return generator == nullptr ? "" : generator->opened.choice.c_str();
}

csg_edge_status csg_edge_generate(csg_edge_generator* generator, const csg_edge_job* job) {
  if (generator == nullptr) return CSG_EDGE_INVALID_ARGUMENT;
  return guarded(generator, [&] { engine_of(generator).make(job_of(job)); });
}

csg_edge_status csg_edge_verify(csg_edge_generator* generator, csg_edge_verification* found) {
  if (generator == nullptr) return CSG_EDGE_INVALID_ARGUMENT;
  return guarded(generator, [&] {
    check_size(found, "verification");
    csg_edge::OpenEngine& open = engine_of(generator);
    csg_edge_verification result = CSG_EDGE_VERIFICATION_INIT;
    result.worst_psnr = std::numeric_limits<double>::infinity();
    std::string failed;
    for (const csg_edge::GoldenCase& one : generator->bundle.manifest.golden) {
      const csg_edge::CaseResult outcome = csg_edge::run_case(generator->bundle, generator->opened.engine, open, one);
      ++result.cases;
      result.passed += outcome.passed ? 1 : 0;
      result.max_levels = std::max(result.max_levels, int32_t(outcome.difference.max_levels));
      result.worst_psnr = std::min(result.worst_psnr, outcome.difference.psnr);
      if (!outcome.passed) failed += (failed.empty() ? "" : ", ") + one.name;
    }
    give_back(result, found);
    if (result.cases == 0) csg_edge::engine_failed("the bundle has no golden cases; export it again");
    if (!failed.empty()) csg_edge::engine_failed("beyond tolerance: " + failed + "; choose another engine");
  });
}

void csg_edge_noise(uint64_t seed, float* values, size_t count) {
  if (values != nullptr && count != 0) csg_edge::noise_for(seed, values, count);
}

csg_edge_cancellation* csg_edge_cancellation_create(void) { return new (std::nothrow) csg_edge_cancellation; }

void csg_edge_cancellation_trigger(csg_edge_cancellation* cancellation) {
  if (cancellation != nullptr) cancellation->inner.trigger();
}

void csg_edge_cancellation_reset(csg_edge_cancellation* cancellation) {
  if (cancellation != nullptr) cancellation->inner.reset();
}

void csg_edge_cancellation_destroy(csg_edge_cancellation* cancellation) { delete cancellation; }

}  // extern "C"
