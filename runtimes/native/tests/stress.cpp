// stress BUNDLE PRECISION COMMAND...: the library under load, for sanitizers, valgrind and counts. Exit code 1: a fault.
//
//     threads HANDLES THREADS IMAGES   THREADS threads on each of HANDLES handles make IMAGES images each, all right
//     reload TIMES                     open, make an image, close
//     cancel TIMES                     jobs that are cancelled and timed out while others run
//     wrong TIMES                      calls that are refused, in between right ones
//     allocations IMAGES               memory taken by this library for an image, after the first
#include <csg_edge.hpp>
#include <dlfcn.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

namespace {

struct Scene {
  std::vector<uint8_t> mask, context, image;
  csg_edge_job job = CSG_EDGE_JOB_INIT;

  Scene(const csg_edge_info& info, uint64_t seed)
      : mask(size_t(info.height) * size_t(info.width)), context(mask.size()), image(mask.size()) {
    for (size_t i = 0; i < mask.size(); ++i) {
      mask[i] = uint8_t((i / 4096 + seed) % size_t(info.classes));
      context[i] = uint8_t((i * 2654435761U) >> 24);
    }
    job.mask = mask.data();
    job.context = context.data();
    job.image = image.data();
    job.seed = seed;
  }
};

int faults = 0;

void expect(bool right, const char* what) {
  if (right) return;
  std::fprintf(stderr, "stress: %s\n", what);
  ++faults;
}

csg_edge_options options_for(const char* precision) {
  csg_edge_options options = CSG_EDGE_OPTIONS_INIT;
  options.runtime = "openvino";
  options.precision = precision;
  options.threads = 1;
  return options;
}

void threads(const char* bundle, const char* precision, int handles, int count, int images) {
  std::vector<csg_edge::Generator> generators;
  for (int i = 0; i < handles; ++i) generators.emplace_back(bundle, options_for(precision));
  constexpr uint64_t kSeeds = 4;
  std::vector<Scene> expected;
  for (uint64_t seed = 0; seed < kSeeds; ++seed) {
    expected.emplace_back(generators[0].info(), seed);
    expected.back().job.image = expected.back().image.data();
    generators[0].generate(expected.back().job);
  }
  std::atomic<int> wrong = 0;
  std::vector<std::thread> workers;
  for (const csg_edge::Generator& generator : generators) {
    for (int i = 0; i < count; ++i) {
      workers.emplace_back([&, i] {
        for (int k = 0; k < images; ++k) {
          const uint64_t seed = uint64_t(i + k) % kSeeds;
          Scene scene(generator.info(), seed);
          generator.generate(scene.job);
          if (scene.image != expected[seed].image) ++wrong;
        }
      });
    }
  }
  for (std::thread& worker : workers) worker.join();
  expect(wrong == 0, "an image is not the one that a single thread makes");
}

void reload(const char* bundle, const char* precision, int times) {
  for (int i = 0; i < times; ++i) {
    const csg_edge::Generator generator(bundle, options_for(precision));
    Scene scene(generator.info(), 1);
    generator.generate(scene.job);
  }
}

void cancel(const char* bundle, const char* precision, int times) {
  const csg_edge::Generator generator(bundle, options_for(precision));
  const csg_edge::Cancellation cancellation;
  Scene first(generator.info(), 1);
  generator.generate(first.job);
  for (int i = 0; i < times; ++i) {
    std::vector<std::thread> workers;
    for (int k = 0; k < 3; ++k) {
      workers.emplace_back([&, k] {
        Scene scene(generator.info(), 1);
        scene.job.cancellation = k == 0 ? nullptr : cancellation.get();
        scene.job.timeout_ms = k == 2 ? 1 : 0;
        try {
          generator.generate(scene.job);
          expect(scene.image == first.image, "an image beside a cancelled one is wrong");
        } catch (const csg_edge::Error& error) {
          expect(error.status() == CSG_EDGE_CANCELLED || error.status() == CSG_EDGE_TIMED_OUT, error.what());
        }
      });
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(i % 12));
    cancellation.trigger();
    for (std::thread& worker : workers) worker.join();
    cancellation.reset();
  }
}

void wrong(const char* bundle, const char* precision, int times) {
  const csg_edge::Generator generator(bundle, options_for(precision));
  Scene scene(generator.info(), 1);
  generator.generate(scene.job);
  const std::vector<uint8_t> right = scene.image;
  for (int i = 0; i < times; ++i) {
    Scene other(generator.info(), 1);
    if (i % 4 == 0) other.mask[size_t(i) * 31 % other.mask.size()] = 200;
    if (i % 4 == 1) other.job.image = nullptr;
    if (i % 4 == 2) other.job.mask_stride = 3;
    if (i % 4 == 3) other.job.size = 1;
    try {
      generator.generate(other.job);
      expect(false, "a wrong job was taken");
    } catch (const csg_edge::Error& error) {
      expect(error.status() == CSG_EDGE_INVALID_ARGUMENT && std::strlen(error.what()) > 10, error.what());
    }
    csg_edge_generator* none = nullptr;
    expect(csg_edge_open("/nonexistent", nullptr, &none) == CSG_EDGE_BAD_BUNDLE, "a missing bundle was opened");
    csg_edge_close(none);
  }
  generator.generate(scene.job);
  expect(scene.image == right, "a right job after wrong ones made another image");
}

std::atomic<bool> counting = false;
std::atomic<long> taken = 0;

// Whether the code that asks for memory is this library's or one of its modules'.
[[maybe_unused]] bool is_ours(const void* caller) {
  Dl_info about{};
  return dladdr(caller, &about) != 0 && about.dli_fname != nullptr && std::strstr(about.dli_fname, "libcsg_edge") != nullptr;
}

void allocations(const char* bundle, const char* precision, int images) {
  const csg_edge::Generator generator(bundle, options_for(precision));
  const csg_edge::Cancellation cancellation;
  Scene scene(generator.info(), 1);
  for (int i = 0; i <= images; ++i) {
    counting = i > 0;
    scene.job.seed = uint64_t(i);
    scene.job.cancellation = i % 2 == 0 ? cancellation.get() : nullptr;
    generator.generate(scene.job);
  }
  counting = false;
  std::printf("%ld allocations by the library in %d images\n", taken.load(), images);
  expect(taken == 0, "memory was taken after the first image");
}

}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !defined(CSG_EDGE_NO_INTERPOSING)
// All memory of the process comes through here; what this library asks for is counted.
extern "C" void* __libc_malloc(size_t);

extern "C" void* malloc(size_t size) {
  if (counting.load(std::memory_order_relaxed) && is_ours(__builtin_return_address(0))) ++taken;
  return __libc_malloc(size);
}

void* operator new(size_t size) {
  if (counting.load(std::memory_order_relaxed) && is_ours(__builtin_return_address(0))) ++taken;
  if (void* found = __libc_malloc(size)) return found;
  throw std::bad_alloc();
}

void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
#endif

int main(int count, char** arguments) {
  if (count < 5) return 2;
  const char *bundle = arguments[1], *precision = arguments[2];
  const std::string command = arguments[3];
  const auto number = [&](int at) { return at < count ? std::atoi(arguments[at]) : 1; };
  try {
    if (command == "threads") threads(bundle, precision, number(4), number(5), number(6));
    if (command == "reload") reload(bundle, precision, number(4));
    if (command == "cancel") cancel(bundle, precision, number(4));
    if (command == "wrong") wrong(bundle, precision, number(4));
    if (command == "allocations") allocations(bundle, precision, number(4));
  } catch (const csg_edge::Error& error) {
    std::fprintf(stderr, "stress: %s\n", error.what());
    return 1;
  }
  return faults == 0 ? 0 : 1;
}
