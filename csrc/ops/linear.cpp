#include "../cpu/dispatch.h"
#include "ops.h"
#include "parallel.h"

namespace edlm {

void check_int8_inputs(const Check& check, const char* name, std::int64_t inputs) {
  constexpr std::int64_t most = 66000; // 255 * 127 * 66,000 < 2^31: sums fit into int32
  check.that(inputs > 0 && inputs % 4 == 0 && inputs <= most, name, ": want a multiple of 4, up to ", most,
             ", as columns, got ", inputs);
}

void quantize_rows(const Tensor& x, const Tensor& q, const Tensor& scale) {
  const Check check("edlm::quantize_rows");
  const DType dtype = check.dtype("x", x);
  check.dense("x", x, x.scalar_type(), {kAny, kAny});
  const std::int64_t rows = x.size(0), columns = x.size(1);
  check.dense("q", q, ScalarType::Byte, {rows, columns}).dense("scale", scale, ScalarType::Float, {rows});
  const QuantizeRowsParams params{dtype, rows, columns, data(x), data<std::uint8_t>(q), data<float>(scale)};
  parallel(rows, columns,
           [&](std::int64_t begin, std::int64_t end) { cpu::kernels().quantize_rows(params, begin, end); });
}

void linear(const Tensor& x, const OptionalTensor& x_scale, const Tensor& weight, const Tensor& out) {
  const Check check("edlm::linear");
  LinearParams params{};
  params.dtype = check.dtype("out", out);
  const bool quantized = x_scale.has_value();
  check.dense("x", x, quantized ? ScalarType::Byte : out.scalar_type(), {kAny, kAny});
  params.rows = x.size(0);
  params.inputs = x.size(1);
  check.dense("out", out, out.scalar_type(), {params.rows, kAny});
  params.outputs = out.size(1);
  const std::int64_t per_unit = quantized ? 4 : 4 / element_size(params.dtype);
  if (quantized) check_int8_inputs(check, "x", params.inputs);
  check.that(params.inputs > 0 && params.inputs % per_unit == 0, "x: want a multiple of ", per_unit, " columns, got ",
             params.inputs);
  check.dense("weight", weight, ScalarType::Int,
              {ceil_div(params.outputs, kPanel), params.inputs / per_unit + (quantized ? 2 : 0), kPanel});
  params.x = data(x);
  params.x_scale = static_cast<const float*>(check.optional("x_scale", x_scale, ScalarType::Float, {params.rows}));
  params.weight = data<std::uint32_t>(weight);
  params.out = data(out);
  parallel(weight.size(0), params.rows * params.inputs * kPanel / kMacsPerElement,
           [&](std::int64_t begin, std::int64_t end) { cpu::kernels().linear(params, begin, end); });
}

} // namespace edlm
