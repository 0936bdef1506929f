// Which instruction set the kernels use: chosen at run time, from what this CPU has.
//
// A kernel file (*_isa.cpp) is compiled once for each instruction set of isa_list.h, into a
// namespace of that name, and hands out a table of its functions. All tables give the same bits.
// Such a file must not use inline functions or templates from outside that namespace that the
// compiler might not inline: the linker keeps one copy of them, perhaps one that cannot run here.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/isa_list.h"

namespace fedcomm {

enum class Isa : std::uint8_t {
#define FEDCOMM_ENUM(isa) isa,
  FEDCOMM_FOR_EACH_ISA(FEDCOMM_ENUM)
#undef FEDCOMM_ENUM
};

std::string_view name_of(Isa isa);

/// Those that this CPU can run, the best last.
std::vector<Isa> available_isas();

/// The one in use: the best there is, or what PYFEDCOMM_FORCE_ISA names. Throws config where that
/// name is unknown or cannot run here.
Isa current_isa();

/// Uses another from now on, for tests and benchmarks. Throws invalid_argument as current_isa().
void use_isa(std::string_view name);

}  // namespace fedcomm
