// The tables of this library that Python reads, as JSON: fields of the block state, columns of the statistics, commit
// rules, and the places of what the host and the device tell each other.
#pragma once

#include <string>

#include "params.h"
#include "stats.h"
#include "step/commit_rule.h"

namespace edlm {

inline std::string tables_json() {
  std::string json = "{\"slot_fields\": [";
#define EDLM_ADD(type, name, count) \
  json += "[\"" #name "\", \"" #type "\", " + std::to_string(static_cast<int>(count)) + "], ";
  EDLM_SLOT_FIELDS(EDLM_ADD)
#undef EDLM_ADD
  const auto end_list = [&](const char* then) { json.replace(json.size() - 2, 2, then); };
  end_list("], \"position_fields\": [");
#define EDLM_ADD(type, name) json += "[\"" #name "\", \"" #type "\"], ";
  EDLM_POSITION_FIELDS(EDLM_ADD)
#undef EDLM_ADD
#define EDLM_ADD(name) json += "\"" #name "\", ";
  end_list("], \"id_columns\": [");
  EDLM_ID_COLUMNS(EDLM_ADD)
  end_list("], \"stat_columns\": [");
  EDLM_STAT_COLUMNS(EDLM_ADD)
  end_list("], \"rules\": [");
  EDLM_RULES(EDLM_ADD)
#undef EDLM_ADD
  end_list("]");
  return json + ", \"control_words\": " + std::to_string(sizeof(LoopControl) / 4) + "}";
}

} // namespace edlm
