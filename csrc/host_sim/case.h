// One call of an op, as python_tests/host_sim.py writes it on standard input: lines "name kind bytes", each followed by
// that many bytes. Kinds: i (int64), f (float32), b (input buffer), o (buffer that goes to standard output in the end).
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "machine.h"

namespace edlm::host_sim {

class Case {
 public:
  Case() {
    char name[64], kind;
    std::size_t bytes;
    while (std::scanf("%63s %c %zu", name, &kind, &bytes) == 3) {
      std::getchar();
      // of the exact size, so that the address sanitizer sees every access beyond it
      Buffer buffer(static_cast<char*>(std::malloc(bytes)), &std::free);
      if (std::fread(buffer.get(), 1, bytes, stdin) != bytes) fail("%s: the input ends early", name);
      if (kind == 'o') outputs_.push_back({name, bytes});
      fields_.emplace(name, std::move(buffer));
    }
  }

  std::int64_t integer(const char* name) const { return scalar<std::int64_t>(name); }
  float number(const char* name) const { return scalar<float>(name); }

  // Null where the case has no such buffer.
  template <class T = void>
  T* buffer(const char* name) const {
    const auto found = fields_.find(name);
    return found == fields_.end() ? nullptr : reinterpret_cast<T*>(found->second.get());
  }

  void write_outputs() const {
    for (const auto& [name, bytes] : outputs_) std::fwrite(fields_.at(name).get(), 1, bytes, stdout);
  }

 private:
  using Buffer = std::unique_ptr<char, void (*)(void*)>;

  template <class V>
  V scalar(const char* name) const {
    const void* at = buffer(name);
    if (!at) fail("%s is missing", name);
    V value;
    std::memcpy(&value, at, sizeof value);
    return value;
  }

  std::map<std::string, Buffer> fields_;
  std::vector<std::pair<std::string, std::size_t>> outputs_;
};

} // namespace edlm::host_sim
