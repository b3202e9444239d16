// Command lines: a mode, options with a value each, and what is left.
#pragma once

#include <charconv>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

/// `program MODE --name value … rest …`. Unknown and repeated options are refused.
class Arguments {
 public:
  Arguments(int argc, char** argv, const std::map<std::string, std::vector<std::string>>& options_by_mode) {
    if (argc < 2 || options_by_mode.find(argv[1]) == options_by_mode.end()) {
      throw std::invalid_argument("the first argument must be one of" + list(options_by_mode));
    }
    mode = argv[1];
    const auto& known = options_by_mode.at(mode);
    for (int i = 2; i < argc; ++i) {
      const std::string word = argv[i];
      if (word.rfind("--", 0) != 0) {
        rest.push_back(word);
        continue;
      }
      const std::string name = word.substr(2);
      bool found = false;
      for (const auto& option : known) found = found || option == name;
      if (!found) throw std::invalid_argument("`" + mode + "` has no option " + word + "; it has" + list(known));
      if (i + 1 == argc) throw std::invalid_argument(word + " needs a value");
      if (!values_.emplace(name, argv[++i]).second) throw std::invalid_argument(word + " is given twice");
    }
  }

  [[nodiscard]] bool has(const std::string& name) const { return values_.count(name) != 0; }
  [[nodiscard]] std::string text(const std::string& name) const {
    const auto found = values_.find(name);
    if (found == values_.end()) throw std::invalid_argument("`" + mode + "` needs --" + name);
    return found->second;
  }
  [[nodiscard]] std::string text(const std::string& name, const std::string& otherwise) const {
    return has(name) ? text(name) : otherwise;
  }
  /// A number of at least `least`.
  template <class Number>
  [[nodiscard]] Number number(const std::string& name, Number otherwise, Number least) const {
    if (!has(name)) return otherwise;
    const std::string given = text(name);
    Number value{};
    const auto end = given.data() + given.size();
    const auto [stop, error] = std::from_chars(given.data(), end, value);
    if (error != std::errc() || stop != end || !(value >= least)) {
      throw std::invalid_argument("--" + name + " is " + given + ", expected a number of at least " + std::to_string(least));
    }
    return value;
  }
  /// Numbers separated by commas.
  [[nodiscard]] std::vector<double> numbers(const std::string& name, const std::string& otherwise) const {
    std::vector<double> found;
    const std::string given = text(name, otherwise);
    for (const char *at = given.data(), *end = at + given.size(); at <= end; ++at) {
      double value = 0.0;
      const auto [stop, error] = std::from_chars(at, end, value);
      if (error != std::errc() || (stop != end && *stop != ',')) {
        throw std::invalid_argument("--" + name + " is " + given + ", expected numbers separated by commas");
      }
      found.push_back(value);
      at = stop;
    }
    return found;
  }

  std::string mode;
  std::vector<std::string> rest;

 private:
  static std::string list(const std::vector<std::string>& names) {
    std::string all;
    for (const auto& name : names) all += " --" + name;
    return all.empty() ? " none" : all;
  }
  static std::string list(const std::map<std::string, std::vector<std::string>>& modes) {
    std::string all;
    for (const auto& mode : modes) all += " " + mode.first;
    return all;
  }

  std::map<std::string, std::string> values_;
};
