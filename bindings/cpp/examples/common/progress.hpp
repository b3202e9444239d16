// How far a training is.
#pragma once

#include <algorithm>
#include <cstdio>

#include <moco.hpp>

/// Says how far a training is, about twenty times.
inline bool tell(const moco_session_progress& now) {
  if (now.event == MOCO_SESSION_EVENT_STEP && now.step % std::max<std::uint64_t>(1, now.steps / 20) == 0) {
    std::fprintf(stderr, "step %llu of %llu, loss %.3f\n", static_cast<unsigned long long>(now.step),
                 static_cast<unsigned long long>(now.steps), static_cast<double>(now.loss));
  }
  return true;
}
