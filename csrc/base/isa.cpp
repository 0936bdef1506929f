#include "base/isa.h"

#include <atomic>
#include <string>

#include "base/env.h"
#include "base/error.h"

namespace fedcomm {
namespace {

bool can_run(Isa isa) {
#if defined(__x86_64__)
  switch (isa) {
    case Isa::portable: return true;
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
#endif
  return isa == Isa::portable;
}

Isa isa_named(std::string_view name, ErrorKind kind, std::string_view source) {
  std::string known;
  for (const Isa isa : available_isas()) {
    if (name_of(isa) == name) return isa;
    known += (known.empty() ? "" : ", ") + std::string(name_of(isa));
  }
  fail(kind, std::string(source) + ": this machine cannot run '" + std::string(name) +
                 "' kernels; it can run " + known);
}

Isa first_choice() {
  const std::string_view forced = env::force_isa();
  if (!forced.empty()) return isa_named(forced, ErrorKind::config, "PYFEDCOMM_FORCE_ISA");
  return available_isas().back();
}

std::atomic<Isa>& current() {
  static std::atomic<Isa> isa{first_choice()};
  return isa;
}

}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
#define FEDCOMM_CASE(isa) \
  case Isa::isa: return #isa;
    FEDCOMM_FOR_EACH_ISA(FEDCOMM_CASE)
#undef FEDCOMM_CASE
  }
  return "";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
#define FEDCOMM_TRY(isa) \
  if (can_run(Isa::isa)) isas.push_back(Isa::isa);
  FEDCOMM_FOR_EACH_ISA(FEDCOMM_TRY)
#undef FEDCOMM_TRY
  return isas;
}

Isa current_isa() {
  return current().load(std::memory_order_relaxed);
}

void use_isa(std::string_view name) {
  current().store(isa_named(name, ErrorKind::invalid_argument, "use_isa"));
}

}  // namespace fedcomm
