// csrc/cuda/loop.cu on the mock of CUDA: a program that makes one loop and launches it, and the same as a library.
// cuda_loop_test <seed> <driver> <failing call or -1> <max_steps> <launches> [<go_on><commit> before each step ...]
#include "cuda_graph_mock.h"

#include "cuda/loop.cu"

#include <cstdio>
#include <cstdlib>

edlm::LoopControl control_of(std::int32_t go_on, std::int32_t commit) {
  edlm::LoopControl control{};
  control.go_on = go_on;
  control.commit = commit;
  control.steps = -77; // the loop sets it
  return control;
}

extern "C" {

void mock_reset(std::uint64_t seed, int driver, int fail_at) {
  mock::state = mock::State{};
  mock::state.random.seed(seed);
  mock::state.driver = driver;
  mock::state.fail_at = fail_at;
}

// A graph as if captured: `nodes` nodes of a type, of which each runs as the step that its name begins with.
void* mock_captured(const char* name, int nodes, int type) {
  const cudaGraph_t graph = mock::add_graph(nullptr, true);
  for (int i = 0; i < nodes; ++i) mock::add_node(graph, static_cast<cudaGraphNodeType>(type))->step = name;
  return graph;
}

void mock_end_captured(void* graph) { cudaGraphDestroy(static_cast<cudaGraph_t>(graph)); }

// `control` as it is before the launch, and what the steps write there; two numbers each.
void mock_script(const std::int32_t* pairs, int count, std::int32_t* control) {
  mock::state.control = reinterpret_cast<edlm::LoopControl*>(control);
  mock::state.script.clear();
  mock::state.played = 0;
  for (int i = 0; i < count; ++i) mock::state.script.push_back(control_of(pairs[2 * i], pairs[2 * i + 1]));
  *mock::state.control = count ? mock::state.script[mock::state.played++] : control_of(0, 1);
}

const char* mock_ran() { return mock::state.ran.c_str(); }

// Graphs and runnable graphs that the loop has made and not ended.
int mock_alive() {
  int count = 0;
  for (const auto& graph : mock::state.graphs)
    count += !graph->captured && graph->root == graph.get() && !graph->destroyed ? 1 : 0;
  for (const auto& loop : mock::state.runnable) count += !loop->destroyed ? 1 : 0;
  return count;
}
}

int main(int count, char** arguments) {
  if (count < 6) edlm::host_sim::fail("too few arguments");
  const auto number = [&](int i) { return std::atoi(arguments[i]); };
  mock_reset(static_cast<std::uint64_t>(number(1)), number(2), number(3));
  std::vector<std::int32_t> pairs;
  for (int i = 6; i < count; ++i)
    for (const char* digit = arguments[i]; *digit; ++digit) pairs.push_back(*digit - '0');
  edlm::LoopControl control{};
  auto* words = reinterpret_cast<std::int32_t*>(&control);
  mock_script(pairs.data(), static_cast<int>(pairs.size() / 2), words);
  void* commit = mock_captured("commit", 1, cudaGraphNodeTypeKernel);
  void* plain = mock_captured("plain", 1, cudaGraphNodeTypeKernel);
  void* loop = words; // to be overwritten
  const char* error = edlm_loop_create(commit, plain, words, number(4), &loop);
  if (error && loop) edlm::host_sim::fail("a loop in spite of an error");
  mock_end_captured(commit);
  mock_end_captured(plain);
  std::string said = error ? error : "";
  for (int i = 0; i < number(5) && loop && said.empty(); ++i)
    if (const char* failed = edlm_loop_launch(loop, nullptr)) said = failed;
  const int alive = mock_alive();
  edlm_loop_destroy(loop);
  std::printf("%s\n%s\n%d %d %d\n", said.c_str(), mock_ran(), control.steps, alive, mock_alive());
  for (const std::string& call : mock::state.calls) std::printf("%s ", call.c_str());
  std::printf("\n");
}
