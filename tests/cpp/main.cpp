// fedcomm-tests [PART OF A NAME]: runs the tests; closes with "N passed, N failed"
// and how many could not run here, which are named. fedcomm-tests --list: their names.
// FEDCOMM_TEST_SHARE=N in the environment: see check.h.
#include <cstdio>
#include <cstring>

#include "check.h"

int main(int argc, char** argv) {
  const bool lists = argc > 1 && std::strcmp(argv[1], "--list") == 0;
  int n_passed = 0, n_failed = 0, n_skipped = 0;
  for (const auto& test : fedcomm::testing::cases()) {
    if (lists) {
      std::puts(test.name);
      continue;
    }
    if (argc > 1 && std::strstr(test.name, argv[1]) == nullptr) continue;
    try {
      test.run();
      ++n_passed;
    } catch (const fedcomm::testing::Skipped& reason) {
      std::printf("skipped %s: %s\n", test.name, reason.what());
      ++n_skipped;
    } catch (const std::exception& error) {
      std::printf("FAILED %s\n  %s\n", test.name, error.what());
      ++n_failed;
    }
  }
  if (lists) return 0;
  std::printf("fedcomm-tests: %d passed, %d failed, %d skipped\n", n_passed, n_failed, n_skipped);
  return n_failed == 0 && n_passed + n_skipped > 0 ? 0 : 1;
}
