// Pictures of one channel out of the files of microscopes and scanners.
#pragma once

#include <filesystem>
#include <opencv2/core.hpp>
#include <string>
#include <vector>

#include <moco.hpp>

/// A picture as its file has it: CV_8U, CV_16U, CV_16S or CV_32F, one channel, in the file's units.
struct Picture {
  std::string name;  ///< The file's, without its extension; with the number of the slice where there are several.
  cv::Mat values;
  double smallest = 0.0, largest = 0.0;  ///< What its bits can hold.
  double low = 0.0, high = 0.0;          ///< The window the file suggests; equal if it suggests none.
  bool inverted = false;                 ///< Large values are dark (MONOCHROME1).
};

/// Which values become black and white.
struct Window {
  /// "auto": all but the 0.5 % darkest and the 0.2 % brightest pixels of each picture. "file": what the file suggests, else
  /// as "full". "full": all that its bits hold. "LOW,HIGH": these values.
  explicit Window(const std::string& text);
  /// The picture for libmoco, which points at its values.
  [[nodiscard]] moco_pixels operator()(const Picture& picture) const;

 private:
  std::string kind_;
  double low_ = 0.0, high_ = 0.0;
};

/// All pictures of a file: DICOM (by DCMTK; a picture a frame), NIfTI (by libmoco; a picture a slice), else what OpenCV reads.
std::vector<Picture> read_pictures(const std::filesystem::path& file);

/// Files of a folder in the order of their names.
std::vector<std::filesystem::path> files_of(const std::filesystem::path& folder);

/// Writes a picture as DICOM (secondary capture) of `bits` bits, 8 to 16, over which what its own bits hold is spread.
void write_dicom(const Picture& picture, int bits, const std::filesystem::path& file);
