// The OpenVINO module: an ONNX graph or IR compiled for batch 1 and latency, as csg_edge/runtimes/ov.py does it.
#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <openvino/openvino.hpp>
#include <openvino/runtime/exception.hpp>
#include <sstream>

#include "backend.h"
#include "failure.h"
#include "python_json.h"

namespace csg_edge {
namespace {

using Json = nlohmann::json;

// The type that layers compute in unless the graph is quantised, and the capability that a device then needs. An int8
// engine leaves some layers in floating point: those take the fastest type there is.
const std::map<std::string, std::vector<std::string>> kHints = {
    {"fp32", {"f32"}}, {"bf16", {"bf16"}}, {"fp16", {"f16"}}, {"int8", {"bf16", "f16", "f32"}}};
const std::map<std::string, std::string> kCapabilities = {{"f32", "FP32"}, {"bf16", "BF16"}, {"f16", "FP16"}};

// Exceptions of the runtime say a lot; the last line is the cause.
std::string said(const std::exception& error) {
  std::istringstream lines(error.what());
  std::string last, line;
  while (std::getline(lines, line)) {
    if (line.find_first_not_of(" \t\r") != std::string::npos) last = line;
  }
  return last.substr(0, 160);
}

class OpenVinoInference : public Inference {
 public:
  OpenVinoInference(ov::CompiledModel& model, bool fibre) : request_(model.create_infer_request()) {
    buffers_.mask = request_.get_tensor("mask").data<uint8_t>();
    buffers_.context = request_.get_tensor("context").data<uint8_t>();
    buffers_.noise = request_.get_tensor("noise").data<float>();
    buffers_.image = request_.get_tensor("image").data<uint8_t>();
    if (fibre) {
      buffers_.fibre = request_.get_tensor("fibre").data<float>();
      buffers_.fibre_used = request_.get_tensor("fibre_used").data<float>();
    }
  }

  const Buffers& buffers() const override { return buffers_; }

  void run() override {
    try {
      request_.infer();
    } catch (const std::exception& error) {
      fail(error);
    }
  }

  void start() override {
    try {
      request_.start_async();
    } catch (const std::exception& error) {
      fail(error);
    }
  }

  bool wait(std::optional<std::chrono::steady_clock::time_point> deadline) override {
    try {
      if (!deadline) {
        request_.wait();
        return true;
      }
      const auto left = *deadline - std::chrono::steady_clock::now();
      const auto rounded = std::chrono::ceil<std::chrono::milliseconds>(left);
      return request_.wait_for(std::max(rounded, std::chrono::milliseconds(0)));
    } catch (const ov::Cancelled&) {
      throw Failure(CSG_EDGE_CANCELLED, "cancelled; start it again");
    } catch (const std::exception& error) {
      fail(error);
    }
  }

  void cancel() override {
    try {
      request_.cancel();
    } catch (const std::exception&) {  // it has ended
    }
  }

 private:
  [[noreturn]] static void fail(const std::exception& error) {
    engine_failed("openvino: inference failed (" + said(error) + "); verify the bundle");
  }

  ov::InferRequest request_;
  Buffers buffers_;
};

class OpenVinoModel : public Model {
 public:
  OpenVinoModel(std::shared_ptr<ov::Core> core, ov::CompiledModel model, std::optional<Blob> mapped, bool fibre)
      : core_(std::move(core)), mapped_(std::move(mapped)), model_(std::move(model)), fibre_(fibre) {}

  std::unique_ptr<Inference> inference() override {
    try {
      return std::make_unique<OpenVinoInference>(model_, fibre_);
    } catch (const ov::Exception& error) {
      engine_failed("openvino: no memory for an inference (" + said(error) + "); free memory");
    }
  }

 private:
  std::shared_ptr<ov::Core> core_;
  std::optional<Blob> mapped_;  // an imported model may read its weights from the file it came from
  ov::CompiledModel model_;
  bool fibre_;
};

class OpenVinoBackend : public Backend {
 public:
  OpenVinoBackend() : core_(std::make_shared<ov::Core>()) {}

  std::string version() override { return ov::get_openvino_version().buildNumber; }

  std::string why_not(const std::string& device, const std::string& precision) override {
    // The CPU is always there; looking for other devices loads every plugin.
    if (device != "CPU") {
      const auto found = core_->get_available_devices();
      const bool there = std::any_of(found.begin(), found.end(), [&](const std::string& name) {
        return name == device || name.substr(0, name.find('.')) == device;
      });
      if (!there) return "OpenVINO finds no device " + device + " here";
    }
    if (hint(precision, capabilities(device)).empty()) {
      return device + " does not compute in " + precision + " natively; use precision auto or fp32";
    }
    return "";
  }

  bool portable(const std::string& suffix) override { return suffix == ".onnx"; }

  std::unique_ptr<Model> open(const OpenRequest& request) override {
    try {
      return open_unchecked(request);
    } catch (const ov::Exception& error) {
      engine_failed(request.file.string() + ": OpenVINO cannot open it (" + said(error) +
                    "); verify the bundle, and update the runtime if it is whole");
    } catch (const std::bad_alloc&) {
      throw Failure(CSG_EDGE_TOO_LITTLE_MEMORY, request.file.string() + ": memory ran out; free some");
    }
  }

 private:
  std::vector<std::string> capabilities(const std::string& device) {
    return core_->get_property(device, ov::device::capabilities);
  }

  static std::string hint(const std::string& precision, const std::vector<std::string>& capabilities) {
    const auto has = [&](const std::string& one) {
      return std::find(capabilities.begin(), capabilities.end(), one) != capabilities.end();
    };
    if (precision == "int8" && !has("INT8")) return "";
    for (const std::string& one : kHints.at(precision)) {
      if (has(kCapabilities.at(one))) return one;
    }
    return "";
  }

  std::unique_ptr<Model> open_unchecked(const OpenRequest& request) {
    const std::string& device = request.target.device;
    std::vector<std::string> able = capabilities(device);
    Json options = {{"PERFORMANCE_HINT", "LATENCY"}, {"INFERENCE_PRECISION_HINT", hint(request.target.precision, able)}};
    if (request.threads > 0) options["INFERENCE_NUM_THREADS"] = request.threads;
    ov::AnyMap config;
    for (const auto& [name, value] : options.items()) {
      config[name] = value.is_string() ? ov::Any(value.get<std::string>()) : ov::Any(value.get<int>());
    }
    std::sort(able.begin(), able.end());
    const std::string full_name = core_->get_property(device, ov::device::full_name);
    const std::string key = key_of({{"engine", request.identity},
                                    {"file", request.file.filename().string()},
                                    {"runtime", "openvino " + version()},
                                    {"device", {device, full_name}},
                                    {"capabilities", able},
                                    {"options", options}});
    const bool fibre = request.manifest.fibre;
    if (auto blob = request.cache.load(key)) {
      try {
        const ov::Tensor tensor(ov::element::u8, ov::Shape{blob->size}, blob->data());
        ov::CompiledModel model = core_->import_model(tensor, device, config);
        check_ports(model, request);
        return std::make_unique<OpenVinoModel>(core_, std::move(model), std::move(blob), fibre);
      } catch (const ov::Exception&) {  // whole, but not to this OpenVINO's taste
        request.cache.discard(key);
      }
    }
    std::shared_ptr<ov::Model> graph = core_->read_model(request.file.string());
    // A fixed batch lets the compiler plan memory and choose kernels ahead of time.
    std::map<std::string, ov::PartialShape> shapes;
    for (const auto& port : graph->inputs()) {
      ov::PartialShape shape = port.get_partial_shape();
      for (auto& side : shape) {
        if (side.is_dynamic()) side = 1;
      }
      shapes[port.get_any_name()] = shape;
    }
    graph->reshape(shapes);
    ov::CompiledModel model = core_->compile_model(graph, device, config);
    graph.reset();
    check_ports(model, request);
    try {
      std::ostringstream blob;
      model.export_model(blob);
      request.cache.store(key, blob.str());
    } catch (const ov::Exception&) {  // a device that cannot export is compiled for each time
    }
    return std::make_unique<OpenVinoModel>(core_, std::move(model), std::nullopt, fibre);
  }

  static void check_ports(const ov::CompiledModel& model, const OpenRequest& request) {
    const Manifest& manifest = request.manifest;
    const auto side = [](int32_t value) { return size_t(value); };
    const ov::Shape image = {1, side(manifest.image_size[0]), side(manifest.image_size[1])};
    const ov::Shape noise = {1, side(manifest.noise_shape[0]), side(manifest.noise_shape[1]), side(manifest.noise_shape[2])};
    const ov::Shape fibre = {1, kFibreChannels, kFibreSide, kFibreSide};
    std::map<std::string, std::pair<ov::element::Type, ov::Shape>> promised = {
        {"mask", {ov::element::u8, image}},
        {"context", {ov::element::u8, image}},
        {"noise", {ov::element::f32, noise}},
        {"image", {ov::element::u8, image}}};
    if (manifest.fibre) {
      promised["fibre"] = {ov::element::f32, fibre};
      promised["fibre_used"] = {ov::element::f32, fibre};
    }
    std::map<std::string, std::pair<ov::element::Type, ov::Shape>> found;
    for (const auto& ports : {model.inputs(), model.outputs()}) {
      for (const auto& port : ports) {
        if (port.get_partial_shape().is_static()) found[port.get_any_name()] = {port.get_element_type(), port.get_shape()};
      }
    }
    if (found != promised) {
      engine_failed(request.engine.file + ": its inputs and outputs are not what the manifest promises; export it again");
    }
  }

  std::shared_ptr<ov::Core> core_;
};

}  // namespace
}  // namespace csg_edge

extern "C" __attribute__((visibility("default"))) csg_edge::Backend* csg_edge_backend(int interface, std::string* why) {
  if (interface != csg_edge::kBackendInterface) {
    *why = "the module is of another build; install the library again";
    return nullptr;
  }
  try {
    return new csg_edge::OpenVinoBackend();
  } catch (const std::exception& error) {
    *why = "OpenVINO does not start (" + csg_edge::said(error) + "); install it again";
    return nullptr;
  }
}
