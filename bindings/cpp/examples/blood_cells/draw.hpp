// Boxes drawn into a picture.
#pragma once

#include <cstdio>
#include <opencv2/imgproc.hpp>
#include <string>
#include <vector>

#include <moco.hpp>

/// Draws boxes with the class and how sure it is. A colour a class, in OpenCV's order: blue, green, red.
inline void draw(cv::Mat& picture, const std::vector<moco_detection>& found, const std::vector<std::string>& classes) {
  static const cv::Scalar colours[] = {{60, 60, 230}, {200, 90, 20}, {40, 160, 40}, {180, 40, 180}, {20, 150, 220}, {120, 120, 20}};
  for (std::size_t i = found.size(); i-- > 0;) {  // The surest on top.
    const moco_detection& box = found[i];
    const cv::Scalar colour = colours[box.label % (sizeof colours / sizeof *colours)];
    const cv::Point corner(cvRound(box.x0), cvRound(box.y0));
    cv::rectangle(picture, corner, cv::Point(cvRound(box.x1) - 1, cvRound(box.y1) - 1), colour, 1);
    char text[96];
    std::snprintf(text, sizeof text, "%s %.2f", classes.at(box.label).c_str(), static_cast<double>(box.score));
    const int below = corner.y < 9 ? corner.y + 9 : corner.y - 2;
    cv::putText(picture, text, cv::Point(corner.x, below), cv::FONT_HERSHEY_SIMPLEX, 0.3, colour, 1, cv::LINE_AA);
  }
}
