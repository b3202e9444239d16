// What the C++ programs check with: the first surprise ends them.
#pragma once

#include <cstdlib>
#include <iostream>
#include <moco.hpp>

inline void check(bool condition, const char* what) {
  if (condition) return;
  std::cerr << "not so: " << what << "\n";
  std::exit(1);
}
#define CHECK(condition) check(condition, #condition)

template <typename Body>
void throws(moco_code code, const std::string& part, Body body) {
  try {
    body();
  } catch (const moco::Error& error) {
    if (error.code() == code && std::string(error.what()).find(part) != std::string::npos) return;
    std::cerr << "expected code " << code << " with `" << part << "`, got " << error.code() << ": " << error.what() << "\n";
    std::exit(1);
  }
  std::cerr << "nothing was thrown where `" << part << "` was expected\n";
  std::exit(1);
}
