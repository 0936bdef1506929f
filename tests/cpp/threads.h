// Ranks as threads, for tests of groups.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "check.h"
#include "collective/group.h"

namespace fedcomm::testing {

using Errors = std::vector<std::optional<Error>>;

/// Runs f(group) in a thread for each; returns the errors, none for those that did well. What a
/// CHECK finds inside is an error as well.
inline Errors run_ranks(const std::vector<std::shared_ptr<Group>>& groups,
                        const std::function<void(Group&)>& f) {
  Errors errors(groups.size());
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    threads.emplace_back([&, i] {
      try {
        f(*groups[i]);
      } catch (const Error& error) {
        errors[i] = error;
      } catch (const Failure& failure) {
        errors[i] = Error(ErrorKind::internal, failure.what());
        groups[i]->abort(failure.what());
      }
    });
  }
  for (auto& thread : threads)
    thread.join();
  return errors;
}

inline void check_none(const Errors& errors) {
  for (const auto& error : errors) {
    if (error && error->kind() == ErrorKind::internal) throw Failure(error->what());
  }
  for (const auto& error : errors) {
    if (error) throw Failure(error->what());
  }
}

}  // namespace fedcomm::testing
