// Stops the jobs that carry it, running or to come, from any thread.
#pragma once

#include <mutex>

#include "backend.h"

namespace csg_edge {

class Cancellation {
 public:
  void trigger() {
    const std::lock_guard<std::mutex> lock(mutex_);
    triggered_ = true;
    for (Watch* watch = first_; watch != nullptr; watch = watch->next_) watch->inference_.cancel();
  }

  void reset() {
    const std::lock_guard<std::mutex> lock(mutex_);
    triggered_ = false;
  }

  bool triggered() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return triggered_;
  }

  // An inference that is to be cancelled while this lives. A list through the stacks of the callers: nothing allocates.
  class Watch {
   public:
    Watch(Cancellation* owner, Inference& inference) : owner_(owner), inference_(inference) {
      if (owner_ == nullptr) return;
      const std::lock_guard<std::mutex> lock(owner_->mutex_);
      next_ = owner_->first_;
      if (next_ != nullptr) next_->before_ = this;
      owner_->first_ = this;
    }
    Watch(const Watch&) = delete;
    Watch& operator=(const Watch&) = delete;
    ~Watch() {
      if (owner_ == nullptr) return;
      const std::lock_guard<std::mutex> lock(owner_->mutex_);
      (before_ != nullptr ? before_->next_ : owner_->first_) = next_;
      if (next_ != nullptr) next_->before_ = before_;
    }

   private:
    friend class Cancellation;
    Cancellation* owner_;
    Inference& inference_;
    Watch *next_ = nullptr, *before_ = nullptr;
  };

 private:
  std::mutex mutex_;
  bool triggered_ = false;
  Watch* first_ = nullptr;
};

}  // namespace csg_edge
