// What the tests of codecs on a GPU share. Only for builds with CUDA.
#pragma once

#include "codec/device_codec.h"
#include "coding_device.h"

namespace fedcomm::testing {

struct Rig {
  Stream stream;
};

/// What `record` puts on the stream, to be launched again and again.
class Graph {
 public:
  template <typename Record>
  Graph(const Stream& stream, const Record& record) : stream_(stream.get()) {
    check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal));
    record(stream_);
    check_cuda(cudaStreamEndCapture(stream_, &graph_));
    check_cuda(cudaGraphInstantiate(&ready_, graph_, 0));
  }
  ~Graph() {
    cudaGraphExecDestroy(ready_);
    cudaGraphDestroy(graph_);
  }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch() const { check_cuda(cudaGraphLaunch(ready_, stream_)); }

 private:
  cudaStream_t stream_;
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t ready_ = nullptr;
};

}  // namespace fedcomm::testing
