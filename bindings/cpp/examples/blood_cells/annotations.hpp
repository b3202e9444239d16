// Boxes around objects, as Pascal VOC and COCO write them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include <moco.hpp>

/// An image file and what is in it: edges in pixels, 0 at the left and upper border of the image.
struct Picture {
  std::filesystem::path path;
  std::vector<moco_box> boxes;
};

struct Pictures {
  std::vector<std::string> classes;
  std::vector<Picture> pictures;
};

/// Reads a folder of Pascal VOC (`Annotations`, and `JPEGImages` beside it) or a COCO file (`.json`) whose images lie in
/// `images`, by default the folder of the file. Classes are those of `classes`, in this order, and another one is refused; if
/// `classes` is empty they are all that occur, by name in VOC, by number in COCO.
Pictures read_annotations(const std::filesystem::path& place, const std::filesystem::path& images,
                          const std::vector<std::string>& classes);
