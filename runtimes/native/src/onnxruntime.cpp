// The ONNX Runtime module: an ONNX graph on the CPU, as csg_edge/runtimes/ort.py does it.
#include <algorithm>
#include <array>
#include <condition_variable>
#include <cstdlib>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#define ORT_API_MANUAL_INIT
#include <onnxruntime_cxx_api.h>

#include "backend.h"
#include "failure.h"

namespace csg_edge {
namespace {

std::string said(const std::exception& error) {
  const std::string text = error.what();
  return text.substr(0, std::min<size_t>(text.find('\n'), 160));
}

std::vector<int64_t> image_shape(const Manifest& manifest) { return {1, manifest.image_size[0], manifest.image_size[1]}; }
std::vector<int64_t> noise_shape(const Manifest& manifest) {
  return {1, manifest.noise_shape[0], manifest.noise_shape[1], manifest.noise_shape[2]};
}
std::vector<int64_t> fibre_shape() { return {1, kFibreChannels, kFibreSide, kFibreSide}; }

// A tensor in memory of its own.
template <typename T>
struct Port {
  std::vector<T> values;
  Ort::Value tensor{nullptr};

  void make(const std::vector<int64_t>& shape) {
    size_t count = 1;
    for (const int64_t side : shape) count *= size_t(side);
    values.resize(count);
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    tensor = Ort::Value::CreateTensor<T>(memory, values.data(), count, shape.data(), shape.size());
  }
};

class OrtInference : public Inference {
 public:
  OrtInference(Ort::Session& session, const Manifest& manifest) : session_(session), binding_(session) {
    mask_.make(image_shape(manifest));
    context_.make(image_shape(manifest));
    image_.make(image_shape(manifest));
    noise_.make(noise_shape(manifest));
    binding_.BindInput("mask", mask_.tensor);
    binding_.BindInput("context", context_.tensor);
    binding_.BindInput("noise", noise_.tensor);
    binding_.BindOutput("image", image_.tensor);
    buffers_ = {mask_.values.data(), context_.values.data(), noise_.values.data(), nullptr, image_.values.data(), nullptr};
    if (manifest.fibre) {
      fibre_.make(fibre_shape());
      fibre_used_.make(fibre_shape());
      binding_.BindInput("fibre", fibre_.tensor);
      binding_.BindOutput("fibre_used", fibre_used_.tensor);
      buffers_.fibre = fibre_.values.data();
      buffers_.fibre_used = fibre_used_.values.data();
    }
  }

  ~OrtInference() override {
    if (!worker_.joinable()) return;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    changed_.notify_all();
    worker_.join();
  }

  const Buffers& buffers() const override { return buffers_; }

  void run() override {
    try {
      session_.Run(Ort::RunOptions{nullptr}, binding_);
    } catch (const std::exception& error) {
      fail(error);
    }
  }

  // ONNX Runtime blocks, so a thread of this inference does the work; it is made once.
  void start() override {
    if (!worker_.joinable()) worker_ = std::thread([this] { work(); });
    const std::lock_guard<std::mutex> lock(mutex_);
    options_.UnsetTerminate();
    cancelled_ = ended_ = false;
    wanted_ = true;
    failure_.clear();
    changed_.notify_all();
  }

  bool wait(std::optional<std::chrono::steady_clock::time_point> deadline) override {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto over = [this] { return ended_; };
    if (!deadline) {
      changed_.wait(lock, over);
    } else if (!changed_.wait_until(lock, *deadline, over)) {
      return false;
    }
    if (cancelled_) throw Failure(CSG_EDGE_CANCELLED, "cancelled; start it again");
    if (!failure_.empty()) engine_failed("onnxruntime: inference failed (" + failure_ + "); verify the bundle");
    return true;
  }

  void cancel() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (ended_) return;
    cancelled_ = true;
    options_.SetTerminate();  // looked at between nodes
  }

 private:
  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return wanted_ || stop_; });
      if (stop_) return;
      wanted_ = false;
      lock.unlock();
      std::string failure;
      try {
        session_.Run(options_, binding_);
      } catch (const std::exception& error) {
        failure = said(error);
      }
      lock.lock();
      failure_ = failure;
      ended_ = true;
      changed_.notify_all();
    }
  }

  [[noreturn]] static void fail(const std::exception& error) {
    engine_failed("onnxruntime: inference failed (" + said(error) + "); verify the bundle");
  }

  Ort::Session& session_;
  Ort::IoBinding binding_;
  Ort::RunOptions options_;
  Port<uint8_t> mask_, context_, image_;
  Port<float> noise_, fibre_, fibre_used_;
  Buffers buffers_;
  std::thread worker_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool wanted_ = false, ended_ = true, cancelled_ = false, stop_ = false;
  std::string failure_;
};

class OrtModel : public Model {
 public:
  OrtModel(Ort::Session session, const Manifest& manifest) : session_(std::move(session)), manifest_(manifest) {}

  std::unique_ptr<Inference> inference() override {
    try {
      return std::make_unique<OrtInference>(session_, manifest_);
    } catch (const Ort::Exception& error) {
      engine_failed("onnxruntime: no memory for an inference (" + said(error) + "); free memory");
    }
  }

 private:
  Ort::Session session_;
  const Manifest& manifest_;
};

class OrtBackend : public Backend {
 public:
  OrtBackend() : environment_(ORT_LOGGING_LEVEL_FATAL, "csg_edge") {}

  std::string version() override { return OrtGetApiBase()->GetVersionString(); }

  std::string why_not(const std::string& device, const std::string& precision) override {
    if (device != "CPU") return "this library runs ONNX Runtime on the CPU alone; use device CPU";
    if (precision != "fp32" && precision != "int8") {
      return "ONNX Runtime on CPU runs these graphs in fp32, int8, not " + precision + "; use precision fp32";
    }
    return "";
  }

  bool portable(const std::string& suffix) override { return suffix == ".onnx"; }

  std::unique_ptr<Model> open(const OpenRequest& request) override {
    try {
      Ort::SessionOptions options;
      options.SetLogSeverityLevel(4);  // what goes wrong is told by the exception
      if (request.threads > 0) options.SetIntraOpNumThreads(request.threads);
      Ort::Session session(environment_, request.file.c_str(), options);
      check_ports(session, request);
      return std::make_unique<OrtModel>(std::move(session), request.manifest);
    } catch (const Ort::Exception& error) {
      engine_failed(request.file.string() + ": ONNX Runtime cannot open it (" + said(error) +
                    "); verify the bundle, and update the runtime if it is whole");
    }
  }

 private:
  using Ports = std::map<std::string, std::pair<ONNXTensorElementDataType, std::vector<int64_t>>>;

  static void check_ports(const Ort::Session& session, const OpenRequest& request) {
    const auto image = std::pair(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, image_shape(request.manifest));
    const auto fibre = std::pair(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, fibre_shape());
    Ports promised = {{"mask", image}, {"context", image}, {"image", image}};
    promised["noise"] = {ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, noise_shape(request.manifest)};
    if (request.manifest.fibre) promised["fibre"] = promised["fibre_used"] = fibre;
    Ports found;
    Ort::AllocatorWithDefaultOptions allocator;
    const auto note = [&](const Ort::AllocatedStringPtr& name, const Ort::TypeInfo& type) {
      const auto tensor = type.GetTensorTypeAndShapeInfo();
      std::vector<int64_t> shape = tensor.GetShape();
      if (!shape.empty() && shape[0] < 0) shape[0] = 1;  // a free batch
      found[name.get()] = {tensor.GetElementType(), shape};
    };
    for (size_t i = 0; i < session.GetInputCount(); ++i) note(session.GetInputNameAllocated(i, allocator), session.GetInputTypeInfo(i));
    for (size_t i = 0; i < session.GetOutputCount(); ++i) note(session.GetOutputNameAllocated(i, allocator), session.GetOutputTypeInfo(i));
    if (found != promised) {
      engine_failed(request.engine.file + ": its inputs and outputs are not what the manifest promises; export it again");
    }
  }

  Ort::Env environment_;
};

}  // namespace
}  // namespace csg_edge

extern "C" __attribute__((visibility("default"))) csg_edge::Backend* csg_edge_backend(int interface, std::string* why) {
  if (interface != csg_edge::kBackendInterface) {
    *why = "the module is of another build; install the library again";
    return nullptr;
  }
  const OrtApi* api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
  if (api == nullptr) {
    *why = std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() + " is older than this module; update it";
    return nullptr;
  }
  Ort::InitApi(api);
  try {
    return new csg_edge::OrtBackend();
  } catch (const std::exception& error) {
    *why = "ONNX Runtime does not start (" + csg_edge::said(error) + "); install it again";
    return nullptr;
  }
}
