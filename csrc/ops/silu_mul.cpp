#include "../cpu/dispatch.h"
#include "gpu.h"
#include "ops.h"
#include "parallel.h"

namespace edlm {

void silu_mul(const Tensor& gate_up, const Tensor& out, const OptionalTensor& q, const OptionalTensor& scale) {
  const Check check("edlm::silu_mul", gate_up);
  const DType dtype = check.dtype("gate_up", gate_up);
  const ScalarType type = gate_up.scalar_type();
  check.dense("out", out, type, {kAny, kAny});
  const std::int64_t rows = out.size(0), inner = out.size(1);
  check.columns("out", inner);
  check.dense("gate_up", gate_up, type, {rows, 2 * inner});

  const SiluMulParams params{dtype, rows, inner, data(gate_up), data(out),
                             quantized_out(check, q, scale, rows, inner)};
  if constexpr (kHasGpu)
    if (check.on_gpu()) return launch_silu_mul(params, GpuScope(out).stream());
  parallel(rows, 4 * inner, [&](std::int64_t begin, std::int64_t end) { cpu::kernels().silu_mul(params, begin, end); });
}

} // namespace edlm
