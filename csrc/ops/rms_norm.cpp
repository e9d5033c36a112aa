#include "../cpu/dispatch.h"
#include "gpu.h"
#include "ops.h"
#include "parallel.h"

namespace edlm {

void rms_norm(const Tensor& x, const OptionalTensor& delta, const Tensor& weight, double eps, const Tensor& out,
              const OptionalTensor& q, const OptionalTensor& scale) {
  const Check check("edlm::rms_norm", x);
  const DType dtype = check.dtype("x", x);
  const ScalarType type = x.scalar_type();
  check.dense("x", x, type, {kAny, kAny});
  const std::int64_t rows = x.size(0), hidden = x.size(1);
  check.columns("x", hidden);
  const void* delta_data = check.optional("delta", delta, type, {rows, hidden});
  check.dense("weight", weight, type, {hidden}).dense("out", out, type, {rows, hidden});

  const RmsNormParams params{dtype,      rows,         hidden,    static_cast<float>(eps), data(x),
                             delta_data, data(weight), data(out), quantized_out(check, q, scale, rows, hidden)};
  if constexpr (kHasGpu)
    if (check.on_gpu()) return launch_rms_norm(params, GpuScope(x).stream());
  parallel(rows, hidden, [&](std::int64_t begin, std::int64_t end) { cpu::kernels().rms_norm(params, begin, end); });
}

} // namespace edlm
