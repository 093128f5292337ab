// camera_loop BUNDLE FRAMES: images at a camera's pace. One thread plays the scanner and hands over the newest mask; the
// other turns it into an image. A mask that was not taken in time is replaced by the next: the picture stays live.
#include <csg_edge.hpp>

#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <optional>
#include <thread>

namespace {

struct Frame {
  int number = 0;
  std::vector<uint8_t> mask;
};

// Holds the newest frame alone.
class Newest {
 public:
  void put(Frame frame) {
    const std::lock_guard<std::mutex> lock(mutex_);
    frame_ = std::move(frame);
    ready_.notify_one();
  }

  void close() {
    const std::lock_guard<std::mutex> lock(mutex_);
    closed_ = true;
    ready_.notify_one();
  }

  // Waits for a frame; none after `close`.
  std::optional<Frame> take() {
    std::unique_lock<std::mutex> lock(mutex_);
    ready_.wait(lock, [this] { return frame_ || closed_; });
    std::optional<Frame> taken = std::move(frame_);
    frame_.reset();
    return taken;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::optional<Frame> frame_;
  bool closed_ = false;
};

// A vessel that wanders through muscle.
Frame frame_of(int number, const csg_edge_info& info, uint8_t muscle, uint8_t vessel) {
  Frame frame{number, std::vector<uint8_t>(size_t(info.height) * size_t(info.width), muscle)};
  const int row = info.height / 2, column = info.width / 4 + number * 2 % (info.width / 2), radius = info.height / 12;
  for (int y = row - radius; y <= row + radius; ++y) {
    for (int x = column - radius; x <= column + radius; ++x) {
      if ((y - row) * (y - row) + (x - column) * (x - column) <= radius * radius) {
        frame.mask[size_t(y) * size_t(info.width) + size_t(x)] = vessel;
      }
    }
  }
  return frame;
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) {
    std::fprintf(stderr, "usage: camera_loop BUNDLE FRAMES\n");
    return 2;
  }
  try {
    const csg_edge::Generator generator(arguments[1]);
    const csg_edge_info info = generator.info();
    const auto index = [names = generator.classes()](const char* wanted) {
      size_t found = 0;
      for (size_t i = 0; i < names.size(); ++i) found = names[i] == wanted ? i : found;
      return uint8_t(found);
    };
    const uint8_t muscle = index("muscle"), vessel = index("vessel");
    const std::vector<uint8_t> context(size_t(info.height) * size_t(info.width), 0);
    Newest newest;
    int made = 0, last = 0;
    std::string trouble;
    std::thread images([&] {
      std::vector<uint8_t> image(context.size());
      while (const std::optional<Frame> frame = newest.take()) {
        csg_edge_job job = CSG_EDGE_JOB_INIT;
        job.mask = frame->mask.data();
        job.context = context.data();
        job.image = image.data();
        job.seed = 1;  // one seed for all: speckle stays where it is while the mask moves
        job.timeout_ms = 2000;
        try {
          generator.generate(job);
        } catch (const csg_edge::Error& error) {
          trouble = error.what();
          return;
        }
        ++made;
        last = frame->number;
      }
    });
    const int frames = std::atoi(arguments[2]);
    const auto begin = std::chrono::steady_clock::now();
    for (int number = 1; number <= frames; ++number) {
      newest.put(frame_of(number, info, muscle, vessel));
      std::this_thread::sleep_until(begin + number * std::chrono::milliseconds(20));
    }
    newest.close();
    images.join();
    if (!trouble.empty()) {
      std::fprintf(stderr, "camera_loop: %s\n", trouble.c_str());
      return 1;
    }
    std::printf("%s: %d frames at 50 a second, %d images, the last of frame %d\n", generator.engine().c_str(), frames, made, last);
  } catch (const csg_edge::Error& error) {
    std::fprintf(stderr, "camera_loop: %s\n", error.what());
    return 2;
  }
}
