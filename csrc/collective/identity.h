// What makes two members' calls the same operation, and words for where they differ.
#pragma once

#include <string>

#include "wire/frame.h"

namespace fedcomm {

const char* name_of(Operation operation);
/// What algorithm_named() (group.h) takes.
const char* name_of(Algorithm algorithm);

/// Whether a frame belongs to the same call as ours.
bool same_call(const FrameHeader& there, const FrameHeader& here);

/// "it has codec bf16, rank 0 has codec int8", where `me` is "rank 0".
std::string differences(const FrameHeader& there, const FrameHeader& here, const std::string& me);

}  // namespace fedcomm
