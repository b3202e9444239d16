// What pre-training is worth: the same training from two starts, with all labels and with few of them.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

/// One training.
struct Trial {
  bool pretrained = false;
  /// Share of the labelled images, in (0, 1].
  double labels = 1.0;
  std::uint64_t seed = 0;
};

/// Measures by name, in the order of the table's columns, as shares of 1.
using Measures = std::vector<std::pair<std::string, double>>;

/// A share of the indices below `n`, at least one; a smaller share of the same seed is part of a larger one.
inline std::vector<std::size_t> part_of(std::size_t n, double share, std::uint64_t seed) {
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::mt19937_64 random(seed);
  for (std::size_t i = n; i > 1; --i) std::swap(order[i - 1], order[random() % i]);
  order.resize(std::min(n, std::max<std::size_t>(1, static_cast<std::size_t>(std::lround(share * static_cast<double>(n))))));
  return order;
}

/// Runs `train` for both starts, every share and the seeds from 0, and prints a table in Markdown: per cent, the mean of
/// the seeds ± their standard deviation.
inline void compare(std::size_t images, const std::vector<double>& shares, std::uint64_t seeds,
                    const std::function<Measures(const Trial&)>& train) {
  std::vector<std::string> rows;
  std::string header = "| labelled images | start |", rule = "|---|---|";
  for (const double share : shares) {
    for (const bool pretrained : {false, true}) {
      std::vector<Measures> found;
      for (std::uint64_t seed = 0; seed < seeds; ++seed) {
        const auto begin = std::chrono::steady_clock::now();
        found.push_back(train(Trial{pretrained, share, seed}));
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        std::fprintf(stderr, "%s start, %g of the labels, seed %llu: %s %.1f %%, %.0f s\n", pretrained ? "MoCo" : "random",
                     share, static_cast<unsigned long long>(seed), found.back().at(0).first.c_str(),
                     100.0 * found.back().at(0).second, took.count());
      }
      std::string row = "| " + std::to_string(part_of(images, share, 0).size()) + " | " + (pretrained ? "MoCo" : "random") + " |";
      for (std::size_t column = 0; column < found[0].size(); ++column) {
        double mean = 0.0, square = 0.0;
        for (const auto& measures : found) mean += measures.at(column).second / static_cast<double>(seeds);
        for (const auto& measures : found) square += std::pow(measures.at(column).second - mean, 2.0);
        char cell[64];
        std::snprintf(cell, sizeof cell, seeds > 1 ? " %.1f ± %.1f |" : " %.1f |", 100.0 * mean,
                      seeds > 1 ? 100.0 * std::sqrt(square / static_cast<double>(seeds - 1)) : 0.0);
        row += cell;
        if (rows.empty()) {
          header += " " + found[0][column].first + " |";
          rule += "---|";
        }
      }
      rows.push_back(row);
    }
  }
  std::printf("%s\n%s\n", header.c_str(), rule.c_str());
  for (const auto& row : rows) std::printf("%s\n", row.c_str());
}
