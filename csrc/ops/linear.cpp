#include "../cpu/dispatch.h"
#include "gpu.h"
#include "ops.h"
#include "parallel.h"

namespace edlm {
namespace {

void check_aligned(const Check& check, const char* name, const Tensor& tensor) {
  check.that(reinterpret_cast<std::uintptr_t>(tensor.data_ptr()) % 16 == 0, name,
             ": want memory aligned to 16 bytes, got a view that is not");
}

void linear_on_cpu(const Check& check, const Tensor& x, const OptionalTensor& x_scale, const Tensor& weight,
                   LinearParams& params) {
  const bool quantized = x_scale.has_value();
  const std::int64_t per_unit = quantized ? 4 : 4 / element_size(params.dtype);
  if (quantized) check_quantized_inputs(check, "x", x);
  check.that(params.inputs > 0 && params.inputs % per_unit == 0, "x: want a multiple of ", per_unit, " columns, got ",
             params.inputs);
  check.dense("weight", weight, ScalarType::Int,
              {ceil_div(params.outputs, kPanel), params.inputs / per_unit + (quantized ? 2 : 0), kPanel});
  parallel(weight.size(0), params.rows * params.inputs * kPanel / kMacsPerElement,
           [&](std::int64_t begin, std::int64_t end) { cpu::kernels().linear(params, begin, end); });
}

} // namespace

DType quantized_dtype(const Check& check, const char* name, const Tensor& rows) {
  if (rows.scalar_type() != ScalarType::Float8_e4m3fn) return DType::u8;
  check.that(check.on_gpu(), name, ": float8 runs on a GPU only; on the CPU want Byte");
  return DType::e4m3;
}

QuantizedOut quantized_out(const Check& check, const OptionalTensor& q, const OptionalTensor& scale, std::int64_t rows,
                           std::int64_t columns) {
  check.that(q.has_value() == scale.has_value(), "q, scale: want both or neither");
  if (!q) return {};
  const DType dtype = quantized_dtype(check, "q", *q);
  check.dense("q", *q, dtype == DType::e4m3 ? ScalarType::Float8_e4m3fn : ScalarType::Byte, {rows, columns})
      .dense("scale", *scale, ScalarType::Float, {rows});
  if (check.on_gpu()) check_aligned(check, "q", *q);
  return {data<std::uint8_t>(*q), data<float>(*scale), dtype};
}

void check_quantized_inputs(const Check& check, const char* name, const Tensor& rows) {
  const std::int64_t inputs = rows.size(1);
  constexpr std::int64_t most = 66000; // 255 * 127 * 66,000 < 2^31: sums fit into int32
  check.that(inputs > 0 && inputs % 4 == 0 && inputs <= most, name, ": want a multiple of 4, up to ", most,
             ", as columns, got ", inputs);
}

void quantize_rows(const Tensor& x, const Tensor& q, const Tensor& scale) {
  const Check check("edlm::quantize_rows", x);
  const DType dtype = check.dtype("x", x);
  check.dense("x", x, x.scalar_type(), {kAny, kAny});
  const std::int64_t rows = x.size(0), columns = x.size(1);
  check.columns("x", columns);
  const QuantizedOut out = quantized_out(check, q, scale, rows, columns);
  const QuantizeRowsParams params{dtype, rows, columns, data(x), out.q, out.scale, out.dtype};
  if constexpr (kHasGpu)
    if (check.on_gpu()) return launch_quantize_rows(params, GpuScope(x).stream());
  parallel(rows, columns,
           [&](std::int64_t begin, std::int64_t end) { cpu::kernels().quantize_rows(params, begin, end); });
}

// All of params but the CUDA fields and weight, which is checked here.
void linear_on_gpu(const Check& check, LinearParams params, const Tensor& x, const Tensor& weight, void* stream) {
  const std::int64_t size = element_size(params.x_dtype), groups = linear_groups(params.outputs);
  if (size == 1) check_quantized_inputs(check, "x", x);
  check.that(params.inputs > 0 && params.inputs * size % 4 == 0, "x: want a multiple of 4 bytes as columns, got ",
             params.inputs, " columns of ", size);
  check.dense("weight", weight, ScalarType::Int, {groups, group_words(params.inputs, size)});
  check_aligned(check, "x", x);
  check_aligned(check, "weight", weight);
  if constexpr (kHasGpu) {
    params.splits = linear_splits(groups, linear_steps(params.inputs, size), device_limits().multiprocessors);
    OptionalTensor partial;
    if (params.splits > 1) {
      partial = workspace(x, params.splits * params.rows * padded_outputs(params.outputs) * sizeof(float));
      params.partial = data(*partial);
    }
    launch_linear(params, stream);
  }
}

void linear(const Tensor& x, const OptionalTensor& x_scale, const Tensor& weight, const Tensor& out) {
  const Check check("edlm::linear", x);
  LinearParams params{};
  params.dtype = check.dtype("out", out);
  const bool quantized = x_scale.has_value();
  ScalarType type = out.scalar_type();
  if (quantized) {
    params.x_dtype = quantized_dtype(check, "x", x);
    type = params.x_dtype == DType::e4m3 ? ScalarType::Float8_e4m3fn : ScalarType::Byte;
  } else if (check.on_gpu()) { // the sums are float anyway
    params.x_dtype = check.dtype("x", x);
    check.that(params.x_dtype != DType::f32, "x: want BFloat16, Half, or quantised rows with x_scale, got Float");
    if (params.dtype == DType::f32) type = x.scalar_type();
  }
  check.dense("x", x, type, {kAny, kAny});
  params.rows = x.size(0);
  params.inputs = x.size(1);
  check.dense("out", out, out.scalar_type(), {params.rows, kAny});
  params.outputs = out.size(1);
  params.x = data(x);
  params.x_scale = static_cast<const float*>(check.optional("x_scale", x_scale, ScalarType::Float, {params.rows}));
  params.weight = data<std::uint32_t>(weight);
  params.out = data(out);
  if constexpr (kHasGpu)
    if (check.on_gpu()) return linear_on_gpu(check, params, x, weight, GpuScope(x).stream());
  linear_on_cpu(check, x, x_scale, weight, params);
}

} // namespace edlm
