#include "collective/stage.h"

#include "collective/device_stage.h"
#include "collective/host_stage.h"

namespace fedcomm {

std::unique_ptr<Stage> make_stage(const GroupContext& context, const OperationSpec& spec) {
  if (spec.input.device == kHost) return std::make_unique<HostStage>(context, spec);
  return std::make_unique<DeviceStage>(context, spec);
}

}  // namespace fedcomm
