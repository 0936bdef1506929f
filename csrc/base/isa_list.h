// The instruction sets that kernels are compiled for on this architecture, the best last. The same
// list, with compiler options, stands in CMakeLists.txt. NEON is part of portable code on ARM.
#pragma once

#if defined(__x86_64__)
#define FEDCOMM_FOR_EACH_ISA(X) X(portable) X(avx2) X(avx512)
#else
#define FEDCOMM_FOR_EACH_ISA(X) X(portable)
#endif
