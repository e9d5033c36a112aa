// What this library is, as JSON for edlm_engine.ops.build_info(): read through ctypes, no tensor is involved.
#include <string>

#include "build_config.h"
#include "cpu/dispatch.h"
#include "tables.h"

extern "C" __attribute__((visibility("default"))) const char* edlm_build_info() {
  static const std::string info = std::string("{\"version\": \"" EDLM_VERSION "\", \"isa\": \"") +
                                  (edlm::cpu::why_no_kernels() ? "" : edlm::cpu::kernels().isa) + "\", \"compiled_isas\": \"" + edlm::cpu::compiled_isas() +
                                  "\", \"cuda\": " EDLM_CUDA_JSON
                                  ", \"cuda_architectures\": " EDLM_CUDA_ARCHITECTURES
                                  ", \"torch_target\": \"2.11\", \"compiler\": \"" __VERSION__ "\"}";
  return info.c_str();
}

// Why this library cannot compute here; null if it can.
extern "C" __attribute__((visibility("default"))) const char* edlm_why_unusable() { return edlm::cpu::why_no_kernels(); }

// The tables that Python makes its tensors from: see tables.h.
extern "C" __attribute__((visibility("default"))) const char* edlm_tables() {
  static const std::string json = edlm::tables_json();
  return json.c_str();
}
