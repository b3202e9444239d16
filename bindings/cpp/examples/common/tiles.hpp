// Pieces of pictures for `moco-train pretrain`: it compares pictures, and one that holds many cells is many examples.
#pragma once

#include <cmath>
#include <opencv2/core.hpp>
#include <stdexcept>
#include <vector>

/// Squares of `side` pixels, spread evenly, that overlap as little as covers the picture.
inline std::vector<cv::Rect> tiles_of(const cv::Size& picture, int side) {
  if (picture.width < side || picture.height < side) {
    throw std::invalid_argument("--size is " + std::to_string(side) + ", larger than a picture of " +
                                std::to_string(picture.width) + " × " + std::to_string(picture.height) + " pixels");
  }
  const auto starts = [side](int length) {
    const int pieces = (length + side - 1) / side;
    std::vector<int> all;
    for (int i = 0; i < pieces; ++i) {
      all.push_back(pieces == 1 ? 0 : static_cast<int>(std::lround(static_cast<double>(i) * (length - side) / (pieces - 1))));
    }
    return all;
  };
  std::vector<cv::Rect> tiles;
  for (const int y : starts(picture.height)) {
    for (const int x : starts(picture.width)) tiles.emplace_back(x, y, side, side);
  }
  return tiles;
}
