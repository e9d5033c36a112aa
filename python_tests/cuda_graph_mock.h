// A stand-in for the part of the CUDA runtime that builds and launches graphs: it records nodes and their dependencies,
// and a launch interprets them on the host. Nodes that may run side by side run in an order of the seed; a condition
// that has no default holds a value of the seed, too. Kernels are host functions, run by the kernels' simulator.
#pragma once

#define EDLM_HOST_SIM
#include <cuda_runtime_api.h>
#undef __device__
#undef __global__
#undef __forceinline__
#undef __launch_bounds__
#if CUDART_VERSION >= 13000
#define MOCK_EDGE_DATA const cudaGraphEdgeData*,
#else
#define MOCK_EDGE_DATA
#endif
#if defined(EDLM_TOOLKIT) // for what an older toolkit would get
#undef CUDART_VERSION
#define CUDART_VERSION EDLM_TOOLKIT
#endif

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "cuda/loop.h"
#if CUDART_VERSION >= 12040
#include "cuda/loop_graph.h" // here: the simulator's names of what a kernel knows are macros
#endif
#include "host_sim/machine.h"

struct CUgraphNode_st {
  cudaGraph_t owner;
  cudaGraphNodeType type;
  std::vector<cudaGraphNode_t> after;
  std::string step; // a captured step's name
  void* kernel = nullptr;
  edlm::LoopParams params{};
  unsigned blocks = 0, threads = 0;
  cudaGraph_t inner[1] = {}; // a child graph, or the body of a condition
  cudaGraphConditionalNodeType condition{};
  edlm::LoopHandle handle = 0;
};

struct CUgraph_st {
  cudaGraph_t root; // of the bodies in it
  bool captured, destroyed = false;
  std::vector<cudaGraphNode_t> nodes;
};

struct CUgraphExec_st {
  cudaGraph_t root;
  bool destroyed = false;
};

namespace mock {

struct Handle {
  cudaGraph_t root;
  unsigned initial, flags, value;
  int nodes = 0;
};

struct State {
  int driver = 13000, fail_at = -1;
  std::vector<std::string> calls;
  std::string ran;                        // for each launch | and the first letters of its steps' names
  std::vector<edlm::LoopControl> script;  // what the next steps write, all but `steps`; after its end, nothing to do
  std::size_t played = 0;
  edlm::LoopControl* control = nullptr;
  std::mt19937_64 random;
  std::map<edlm::LoopHandle, Handle> handles;
  std::vector<std::unique_ptr<CUgraph_st>> graphs;
  std::vector<std::unique_ptr<CUgraphNode_st>> nodes;
  std::vector<std::unique_ptr<CUgraphExec_st>> runnable;
};

inline State state;

inline cudaError_t enter(const char* name) {
  state.calls.push_back(name);
  const bool fails = static_cast<int>(state.calls.size()) - 1 == state.fail_at;
  return fails ? cudaErrorUnknown : cudaSuccess;
}

inline cudaGraph_t add_graph(cudaGraph_t root, bool captured) {
  state.graphs.push_back(std::make_unique<CUgraph_st>(CUgraph_st{root, captured, false, {}}));
  cudaGraph_t graph = state.graphs.back().get();
  if (!root) graph->root = graph;
  return graph;
}

inline cudaGraphNode_t add_node(cudaGraph_t graph, cudaGraphNodeType type, const cudaGraphNode_t* after = nullptr,
                                std::size_t count = 0) {
  for (std::size_t i = 0; i < count; ++i)
    if (after[i]->owner != graph) return nullptr;
  state.nodes.push_back(std::make_unique<CUgraphNode_st>());
  cudaGraphNode_t node = state.nodes.back().get();
  node->owner = graph;
  node->type = type;
  node->after.assign(after, after + count);
  graph->nodes.push_back(node);
  return node;
}

inline bool usable(cudaGraph_t graph) { return graph && !graph->root->destroyed; }

inline bool any_conditional(cudaGraph_t graph) {
  return std::any_of(graph->nodes.begin(), graph->nodes.end(),
                     [](auto* node) { return node->type == cudaGraphNodeTypeConditional; });
}

// What an instantiation refuses: a body with a node that it cannot hold, or without any.
inline bool runnable(cudaGraph_t graph, bool top) {
  if (graph->nodes.empty()) return false;
  for (const cudaGraphNode_t node : graph->nodes) {
    if (!top && (node->type == cudaGraphNodeTypeHost || node->type == cudaGraphNodeTypeMemAlloc)) return false;
    if (node->inner[0] && !runnable(node->inner[0], false)) return false;
  }
  return true;
}

inline void run_kernel(const CUgraphNode_st& node) {
  if (node.kernel) {
    struct Call {
      void (*kernel)(edlm::LoopParams);
      edlm::LoopParams params;
    } const call{reinterpret_cast<void (*)(edlm::LoopParams)>(node.kernel), node.params};
    edlm::host_sim::machine.run(
        [](const void* of) { static_cast<const Call*>(of)->kernel(static_cast<const Call*>(of)->params); }, &call,
        {node.blocks, 1, 1}, static_cast<int>(node.threads), 0);
    return;
  }
  if (node.step.empty()) return;
  state.ran += node.step[0];
  const auto next = state.played < state.script.size() ? state.script[state.played++] : edlm::LoopControl{};
  state.control->go_on = next.go_on;
  state.control->commit = next.commit;
}

inline void run_graph(cudaGraph_t graph);

inline void run_node(const CUgraphNode_st& node) {
  if (node.type == cudaGraphNodeTypeKernel) return run_kernel(node);
  if (node.type == cudaGraphNodeTypeGraph) return run_graph(node.inner[0]);
  const unsigned& value = state.handles.at(node.handle).value;
  if (node.condition == cudaGraphCondTypeIf) {
    if (value) run_graph(node.inner[0]);
    return;
  }
  for (int turns = 0; value; ++turns) {
    if (turns == 1000) edlm::host_sim::fail("a loop that does not end");
    run_graph(node.inner[0]);
  }
}

inline void run_graph(cudaGraph_t graph) {
  std::vector<cudaGraphNode_t> waiting = graph->nodes;
  while (!waiting.empty()) {
    std::shuffle(waiting.begin(), waiting.end(), state.random);
    const auto ready = std::find_if(waiting.begin(), waiting.end(), [&](cudaGraphNode_t node) {
      return std::none_of(node->after.begin(), node->after.end(), [&](cudaGraphNode_t before) {
        return std::find(waiting.begin(), waiting.end(), before) != waiting.end();
      });
    });
    const cudaGraphNode_t node = *ready;
    run_node(*node);
    waiting.erase(std::find(waiting.begin(), waiting.end(), node));
  }
}

} // namespace mock

inline void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  mock::state.handles.at(handle).value = value;
}

extern "C" {

const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorUnknown ? "made to fail" : "invalid argument";
}
cudaError_t cudaGetLastError() { return cudaSuccess; }

cudaError_t cudaDriverGetVersion(int* version) {
  *version = mock::state.driver;
  return mock::enter("cudaDriverGetVersion");
}

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  if (const auto error = mock::enter("cudaGraphCreate")) return error;
  *graph = mock::add_graph(nullptr, false);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  if (!mock::usable(graph) || graph->root != graph) edlm::host_sim::fail("a graph destroyed that is none");
  graph->destroyed = true;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, std::size_t* count) {
  if (const auto error = mock::enter("cudaGraphGetNodes")) return error;
  if (!mock::usable(graph)) return cudaErrorInvalidValue;
  if (nodes) std::copy_n(graph->nodes.begin(), std::min(*count, graph->nodes.size()), nodes);
  *count = graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphNodeGetType(cudaGraphNode_t node, cudaGraphNodeType* type) {
  *type = node->type;
  return mock::enter("cudaGraphNodeGetType");
}

cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph, unsigned initial,
                                             unsigned flags) {
  if (const auto error = mock::enter("cudaGraphConditionalHandleCreate")) return error;
  if (!mock::usable(graph)) return cudaErrorInvalidValue;
  *handle = 1000 + mock::state.handles.size();
  mock::state.handles[*handle] = {graph->root, initial, flags, 0};
  return cudaSuccess;
}

cudaError_t cudaGraphAddKernelNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                   std::size_t count, const cudaKernelNodeParams* params) {
  if (const auto error = mock::enter("cudaGraphAddKernelNode")) return error;
  if (!mock::usable(graph) || !(*out = mock::add_node(graph, cudaGraphNodeTypeKernel, after, count)))
    return cudaErrorInvalidValue;
  (*out)->kernel = params->func;
  (*out)->params = *static_cast<const edlm::LoopParams*>(params->kernelParams[0]);
  (*out)->blocks = params->gridDim.x * params->gridDim.y * params->gridDim.z;
  (*out)->threads = params->blockDim.x * params->blockDim.y * params->blockDim.z;
  return cudaSuccess;
}

cudaError_t cudaGraphAddChildGraphNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                                       std::size_t count, cudaGraph_t child) {
  if (const auto error = mock::enter("cudaGraphAddChildGraphNode")) return error;
  if (!mock::usable(graph) || !mock::usable(child) || mock::any_conditional(child)) return cudaErrorInvalidValue;
  if (!(*out = mock::add_node(graph, cudaGraphNodeTypeGraph, after, count))) return cudaErrorInvalidValue;
  const cudaGraph_t copy = mock::add_graph(graph->root, false);
  for (const cudaGraphNode_t node : child->nodes) mock::add_node(copy, node->type)->step = node->step;
  (*out)->inner[0] = copy;
  return cudaSuccess;
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t* after,
                             MOCK_EDGE_DATA std::size_t count, cudaGraphNodeParams* params) {
  if (const auto error = mock::enter("cudaGraphAddNode")) return error;
  auto& condition = params->conditional;
  const auto known = mock::state.handles.find(condition.handle);
  if (!mock::usable(graph) || params->type != cudaGraphNodeTypeConditional || condition.size != 1 ||
      known == mock::state.handles.end() || known->second.root != graph->root || known->second.nodes++ > 0 ||
      !(*out = mock::add_node(graph, params->type, after, count)))
    return cudaErrorInvalidValue;
  (*out)->handle = condition.handle;
  (*out)->condition = condition.type;
  (*out)->inner[0] = mock::add_graph(graph->root, false);
  condition.phGraph_out = (*out)->inner;
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long) {
  if (const auto error = mock::enter("cudaGraphInstantiate")) return error;
  if (!mock::usable(graph) || !mock::runnable(graph, true)) return cudaErrorInvalidValue;
  for (const auto& [_, handle] : mock::state.handles)
    if (handle.root == graph && handle.nodes != 1) return cudaErrorInvalidValue;
  mock::state.runnable.push_back(std::make_unique<CUgraphExec_st>(CUgraphExec_st{graph}));
  *out = mock::state.runnable.back().get();
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t loop, cudaStream_t) {
  if (const auto error = mock::enter("cudaGraphLaunch")) return error;
  if (loop->destroyed) return cudaErrorInvalidValue;
  for (auto& [_, handle] : mock::state.handles)
    handle.value = handle.flags & cudaGraphCondAssignDefault ? handle.initial : mock::state.random() % 3;
  mock::state.ran += '|';
  mock::run_graph(loop->root);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t loop) {
  if (loop->destroyed) edlm::host_sim::fail("a loop destroyed twice");
  loop->destroyed = true;
  return cudaSuccess;
}
}
