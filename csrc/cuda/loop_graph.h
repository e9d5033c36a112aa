// Builds the loop: begin -> WHILE again { IF commit { with_commit } -> IF plain { plain } -> next }. Host code alone:
// a test interprets what it builds.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "loop.h"

namespace edlm::cuda {

static_assert(std::is_same_v<LoopHandle, cudaGraphConditionalHandle>);

inline void check_loop(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError(); // so that it is reported once
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

struct DestroyGraph {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
using OwnedGraph = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, DestroyGraph>;

inline OwnedGraph new_graph() {
  cudaGraph_t graph = nullptr;
  check_loop(cudaGraphCreate(&graph, 0), "cudaGraphCreate");
  return OwnedGraph(graph);
}

// Without a default: the loop's kernels set it before a node reads it.
inline LoopHandle new_handle(cudaGraph_t root) {
  LoopHandle handle = 0;
  check_loop(cudaGraphConditionalHandleCreate(&handle, root, 0, 0), "cudaGraphConditionalHandleCreate");
  return handle;
}

inline const char* forbidden_node(cudaGraphNodeType type) {
  switch (type) {
    case cudaGraphNodeTypeKernel:
    case cudaGraphNodeTypeMemcpy:
    case cudaGraphNodeTypeMemset:
    case cudaGraphNodeTypeGraph:
    case cudaGraphNodeTypeEmpty: return nullptr;
    case cudaGraphNodeTypeHost: return "a host function";
    case cudaGraphNodeTypeWaitEvent:
    case cudaGraphNodeTypeEventRecord: return "an event";
    case cudaGraphNodeTypeMemAlloc:
    case cudaGraphNodeTypeMemFree: return "a memory allocation (is torch's allocator cudaMallocAsync?)";
    case cudaGraphNodeTypeConditional: return "a conditional node";
    default: return "a node of unknown type";
  }
}

// CUDA says only "invalid argument" of what the body of a condition cannot hold, and drivers before 12.8 may never end
// an empty one.
inline void check_step(cudaGraph_t step, const char* name) {
  std::size_t count = 0;
  check_loop(cudaGraphGetNodes(step, nullptr, &count), "cudaGraphGetNodes");
  if (count == 0) throw std::runtime_error(std::string("the graph ") + name + " is empty");
  std::vector<cudaGraphNode_t> nodes(count);
  check_loop(cudaGraphGetNodes(step, nodes.data(), &count), "cudaGraphGetNodes");
  for (const cudaGraphNode_t node : nodes) {
    cudaGraphNodeType type{};
    check_loop(cudaGraphNodeGetType(node, &type), "cudaGraphNodeGetType");
    if (const char* what = forbidden_node(type))
      throw std::runtime_error(std::string("the graph ") + name + " holds " + what +
                               ", which cannot run in a device-side loop");
  }
}

// `after` of these functions: the node to wait for, or null.
inline cudaGraphNode_t add_kernel(cudaGraph_t graph, cudaGraphNode_t after, void* kernel, int threads,
                                  const LoopParams& params) {
  LoopParams copied = params; // by the call
  void* arguments[] = {&copied};
  cudaKernelNodeParams launch{};
  launch.func = kernel;
  launch.gridDim = ::dim3(1, 1, 1);
  launch.blockDim = ::dim3(static_cast<unsigned>(threads), 1, 1);
  launch.kernelParams = arguments;
  cudaGraphNode_t node = nullptr;
  check_loop(cudaGraphAddKernelNode(&node, graph, after ? &after : nullptr, after ? 1 : 0, &launch),
             "cudaGraphAddKernelNode");
  return node;
}

// A copy of the step: the step's graph may end before the loop.
inline void add_step(cudaGraph_t graph, cudaGraph_t step) {
  cudaGraphNode_t node = nullptr;
  check_loop(cudaGraphAddChildGraphNode(&node, graph, nullptr, 0, step), "cudaGraphAddChildGraphNode");
}

struct Condition {
  cudaGraphNode_t node;
  cudaGraph_t body;
};

inline Condition add_condition(cudaGraph_t graph, cudaGraphNode_t after, LoopHandle handle,
                               cudaGraphConditionalNodeType type) {
  cudaGraphNodeParams params{};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = handle;
  params.conditional.type = type;
  params.conditional.size = 1;
  cudaGraphNode_t node = nullptr;
  const cudaGraphNode_t* dependencies = after ? &after : nullptr;
  const std::size_t count = after ? 1 : 0;
#if CUDART_VERSION >= 13000
  const cudaError_t status = cudaGraphAddNode(&node, graph, dependencies, nullptr, count, &params);
#else
  const cudaError_t status = cudaGraphAddNode(&node, graph, dependencies, count, &params);
#endif
  check_loop(status, "cudaGraphAddNode");
  return {node, params.conditional.phGraph_out[0]};
}

struct LoopKernels {
  void *begin, *next; // each takes LoopParams
  int threads;
};

// IF takes an ELSE only from CUDA 12.8 on, so there are two IFs.
inline cudaGraphExec_t build_loop(const LoopKernels& kernels, cudaGraph_t with_commit, cudaGraph_t plain,
                                  LoopControl* control, std::int32_t max_steps) {
  check_step(with_commit, "with_commit");
  check_step(plain, "plain");
  const OwnedGraph owned = new_graph();
  const cudaGraph_t root = owned.get();
  LoopParams params{control, max_steps, 0, 0, 0};
  params.again = new_handle(root);
  params.commit = new_handle(root);
  params.plain = new_handle(root);
  const cudaGraphNode_t begin = add_kernel(root, nullptr, kernels.begin, kernels.threads, params);
  const Condition loop = add_condition(root, begin, params.again, cudaGraphCondTypeWhile);
  const Condition commits = add_condition(loop.body, nullptr, params.commit, cudaGraphCondTypeIf);
  add_step(commits.body, with_commit);
  const Condition plains = add_condition(loop.body, commits.node, params.plain, cudaGraphCondTypeIf);
  add_step(plains.body, plain);
  add_kernel(loop.body, plains.node, kernels.next, kernels.threads, params);
  cudaGraphExec_t runnable = nullptr;
  check_loop(cudaGraphInstantiate(&runnable, root, 0), "cudaGraphInstantiate");
  return runnable;
}

} // namespace edlm::cuda
