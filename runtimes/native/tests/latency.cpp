// latency BUNDLE ENGINE_FILE PRECISION ROUNDS: csg_edge_generate against the bare OpenVINO inference of the same file, in
// turns, milliseconds. ENGINE_FILE: the file of the engine that the bundle's choice for PRECISION is.
#include <csg_edge.hpp>
#include <openvino/openvino.hpp>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>

namespace {

double milliseconds(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + std::ptrdiff_t(values.size() / 2), values.end());
  return values[values.size() / 2];
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) return 2;
  const std::string precision = arguments[3];
  csg_edge_options options = CSG_EDGE_OPTIONS_INIT;
  options.runtime = "openvino";
  options.precision = precision.c_str();
  double cold = 0;
  std::vector<uint8_t> mask, context, image;
  csg_edge_job job = CSG_EDGE_JOB_INIT;
  std::unique_ptr<csg_edge::Generator> generator;
  cold = milliseconds([&] {
    generator = std::make_unique<csg_edge::Generator>(arguments[1], options);
    const csg_edge_info info = generator->info();
    mask.assign(size_t(info.height) * size_t(info.width), 3);
    context.assign(mask.size(), 90);
    image.resize(mask.size());
    job.mask = mask.data();
    job.context = context.data();
    job.image = image.data();
    generator->generate(job);
  });
  const csg_edge_info info = generator->info();
  std::vector<float> noise(size_t(info.noise_channels) * size_t(info.noise_height) * size_t(info.noise_width));
  csg_edge_noise(7, noise.data(), noise.size());

  ov::Core core;
  auto graph = core.read_model(arguments[2]);
  std::map<std::string, ov::PartialShape> shapes;
  for (const auto& port : graph->inputs()) {
    ov::PartialShape shape = port.get_partial_shape();
    for (auto& side : shape) {
      if (side.is_dynamic()) side = 1;
    }
    shapes[port.get_any_name()] = shape;
  }
  graph->reshape(shapes);
  ov::CompiledModel model = core.compile_model(
      graph, "CPU",
      ov::AnyMap{{"PERFORMANCE_HINT", "LATENCY"}, {"INFERENCE_PRECISION_HINT", precision == "fp32" ? "f32" : "bf16"}});
  ov::InferRequest request = model.create_infer_request();
  std::copy(mask.begin(), mask.end(), request.get_tensor("mask").data<uint8_t>());
  std::copy(context.begin(), context.end(), request.get_tensor("context").data<uint8_t>());
  std::copy(noise.begin(), noise.end(), request.get_tensor("noise").data<float>());
  if (shapes.count("fibre") != 0) {  // nothing given, as in the job
    ov::Tensor fibre = request.get_tensor("fibre");
    std::fill_n(fibre.data<float>(), fibre.get_size(), 0.0F);
  }

  csg_edge_job given = job;
  given.noise = noise.data();
  std::vector<double> bare, with_noise, with_seed, again, noise_alone;
  for (int i = 0; i < std::atoi(arguments[4]); ++i) {
    bare.push_back(milliseconds([&] { request.infer(); }));
    with_noise.push_back(milliseconds([&] { generator->generate(given); }));
    job.seed = 1000 + uint64_t(i);
    with_seed.push_back(milliseconds([&] { generator->generate(job); }));
    job.seed = 7;
    generator->generate(job);
    again.push_back(milliseconds([&] { generator->generate(job); }));
    noise_alone.push_back(milliseconds([&] { csg_edge_noise(7, noise.data(), noise.size()); }));
  }
  const bool same = std::equal(image.begin(), image.end(), request.get_tensor("image").data<uint8_t>());
  std::printf("%s: cold start to first image %.0f ms; median of %s: bare %.3f ms, with given noise %.3f ms (%.4f), with a new seed "
              "%.3f ms (%.4f), with the last seed again %.3f ms (%.4f); noise alone %.3f ms; images %s\n",
              generator->engine().c_str(), cold, arguments[4], median(bare), median(with_noise),
              median(with_noise) / median(bare), median(with_seed), median(with_seed) / median(bare), median(again),
              median(again) / median(bare), median(noise_alone),
              same ? "equal" : "DIFFER");
  return same ? 0 : 1;
}
