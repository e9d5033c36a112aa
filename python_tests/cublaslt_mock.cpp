// cuBLASLt's functions as far as models/cublaslt.py calls them, on a CPU, in float32. Algorithm i is what mock_behave
// made of it: 0 right, 1 refused when run, 2 wrong, 3 right but reported unusable.
#include <cstdint>
#include <cstring>

namespace {
struct Layout {
  int type;
  std::uint64_t rows, columns;
  std::int64_t lead;
};
struct Operation {
  int compute, scale, transpose_a;
};
struct Found {
  std::uint64_t algorithm[8];
  std::size_t workspace;
  int state;
  float waves;
  int reserved[4];
};
int behaviour[16], count, alive, last, refuse;
std::uint64_t most_workspace;
} // namespace

extern "C" {
void mock_behave(const int* kinds, int n, int refused) {
  std::memcpy(behaviour, kinds, n * sizeof(int));
  count = n;
  last = -1;
  refuse = refused;
}
int mock_last() { return last; }
int mock_alive() { return alive; }
int cublasLtCreate(void** handle) { return *handle = &behaviour, 0; }
int cublasLtMatmulDescCreate(Operation** made, int compute, int scale) {
  ++alive;
  return *made = new Operation{compute, scale, 0}, compute == 68 && scale == 0 ? 0 : 7;
}
int cublasLtMatmulDescSetAttribute(Operation* op, int attribute, const int* value, std::size_t bytes) {
  if (attribute != 3 || bytes != 4) return 7;
  op->transpose_a = *value;
  return 0;
}
int cublasLtMatrixLayoutCreate(Layout** made, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t lead) {
  *made = new Layout{type, rows, columns, lead};
  return type == 0 ? 0 : 15;
}
int cublasLtMatmulPreferenceCreate(void** made) { return *made = new char, 0; }
int cublasLtMatmulPreferenceSetAttribute(void*, int attribute, const std::uint64_t* value, std::size_t bytes) {
  most_workspace = *value;
  return attribute == 1 && bytes == 8 ? 0 : 7;
}
int cublasLtMatmulPreferenceDestroy(void* made) { return delete static_cast<char*>(made), 0; }
int cublasLtMatmulAlgoGetHeuristic(void* handle, Operation* op, Layout* a, Layout* b, Layout* c, Layout* d, void*,
                                   int requested, Found* found, int* returned) {
  if (refuse || handle != &behaviour || op->transpose_a != 1 || a->rows != b->rows || a->columns != d->rows ||
      b->columns != d->columns || c != d)
    return 15;
  *returned = count < requested ? count : requested;
  for (int i = 0; i < *returned; ++i) {
    found[i] = {};
    found[i].algorithm[7] = i + 100;
    found[i].workspace = i == 15 ? most_workspace + 1 : 0;
    found[i].state = behaviour[i] == 3 ? 15 : 0;
  }
  return 0;
}
int cublasLtMatmul(void*, Operation*, const float* alpha, const float* a, Layout* la, const float* b, Layout* lb,
                   const float* beta, const float*, Layout*, float* d, Layout* ld, const std::uint64_t* algorithm,
                   void* workspace, std::size_t bytes, void* stream) {
  if (*alpha != 1 || *beta != 0 || !workspace || bytes != most_workspace || stream != reinterpret_cast<void*>(7)) return 7;
  last = static_cast<int>(algorithm[7]) - 100;
  if (behaviour[last] == 1) return 13;
  for (std::uint64_t row = 0; row < ld->columns; ++row)
    for (std::uint64_t o = 0; o < ld->rows; ++o) {
      float sum = behaviour[last] == 2 ? 1e3f : 0;
      for (std::uint64_t k = 0; k < la->rows; ++k) sum += a[o * la->lead + k] * b[row * lb->lead + k];
      d[row * ld->lead + o] = sum;
    }
  return 0;
}
}
