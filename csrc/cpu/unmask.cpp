#include "../step/lanes.h"
#include "../step/unmask.h"
#include "dispatch.h"

namespace edlm::cpu {

void unmask(const UnmaskParams& p) {
  const CommitScratch scratch = commit_scratch(p.scratch, p.state.max_block);
  for (std::int64_t s = 0; s < p.state.slots; ++s)
    if (const std::int64_t row = p.first_row[s]; row >= 0)
      edlm::unmask(block_of(p.state, s), p.ids + row * IdColumn::count, p.stats + row * StatColumn::count, scratch,
                   OneLane{});
}

} // namespace edlm::cpu
