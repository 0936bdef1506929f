// Groups in which something goes wrong: faults of the memory transport, which can fail on purpose,
// members that leave or disagree, and the epochs that follow.
#include <cmath>
#include <thread>
#include <vector>

#include "group_ranks.h"

namespace fedcomm {
namespace {

using testing::all_reduce;
using testing::check_all;
using testing::check_none;
using testing::impatient;
using testing::input;
using testing::Ranks;
using testing::small_segments;
using testing::view;

constexpr Algorithm kAlgorithms[] = {Algorithm::direct, Algorithm::ring, Algorithm::all_gather};

}  // namespace

TEST(lost_frame_times_out_and_breaks_the_group_everywhere) {
  for (const Fault fault : {Fault::drop, Fault::silence}) {
    Ranks ranks(3, impatient());
    ranks.hub->inject(1, 2, fault, 0);  // a contribution: without it nobody gets that segment
    check_all(ranks.run([](Group& group) { all_reduce(group, 50000); }), ErrorKind::timeout);
    check_all(ranks.run([](Group& group) { all_reduce(group, 10); }), ErrorKind::group_broken);
    for (const auto& group : ranks.groups)
      CHECK(group->broken().has_value());
  }
}

TEST(damaged_frames_are_recognised) {
  for (const Fault fault : {Fault::corrupt, Fault::truncate}) {
    for (const Algorithm algorithm : kAlgorithms) {
      Ranks ranks(3, small_segments());
      ranks.hub->inject(0, 1, fault, 2);
      const auto errors = ranks.run([&](Group& group) { all_reduce(group, 50000, algorithm); });
      // The others may have had all that they need; they hear of it in the next operation.
      CHECK(errors[1].has_value() && errors[1]->kind() == ErrorKind::corrupt_frame);
      for (const auto& error : ranks.run([](Group& group) { all_reduce(group, 10); })) {
        CHECK(error.has_value());
      }
    }
  }
}

TEST(members_that_disagree_are_told_so) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(3), small_segments());
    const auto errors =
        ranks.run([](Group& group) { all_reduce(group, group.rank() == 1 ? 5001 : 5000); });
    check_all(errors, ErrorKind::invalid_argument);
  }
}

TEST(weights_that_add_up_to_nothing_are_refused_everywhere) {
  for (const Algorithm algorithm : kAlgorithms) {
    Ranks ranks(3, small_segments());
    check_all(ranks.run([&](Group& group) {
      auto x = input(group.rank(), 9000);
      ReduceOptions options;
      options.algorithm = algorithm;
      options.reduce = ReduceOp::mean;
      options.weight = 0.0;
      group.all_reduce(view(x), view(x), options)->wait();
    }),
              ErrorKind::invalid_argument);
  }
}

TEST(a_member_that_leaves_is_missed) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(3), small_segments());
    const auto errors = ranks.run([](Group& group) {
      all_reduce(group, 5000);
      if (group.rank() == 1) {
        group.close();
      } else {
        all_reduce(group, 5000);
      }
    });
    CHECK(!errors[1].has_value());
    CHECK(errors[0].has_value() && errors[0]->kind() == ErrorKind::peer_lost);
    CHECK(errors[2].has_value() && errors[2]->kind() == ErrorKind::peer_lost);
  }
}

TEST(leaving_after_the_last_operation_harms_nobody) {
  for (const auto& kind : testing::fabric_kinds()) {
    for (int repeat = 0; repeat < 20; ++repeat) {
      Ranks ranks(kind.make(4), small_segments());
      check_none(ranks.run([](Group& group) {
        all_reduce(group, 20000, Algorithm::ring);
        group.close();
      }));
    }
  }
}

TEST(abort_reaches_everyone) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(3), small_segments());
    const auto errors = ranks.run([](Group& group) {
      if (group.rank() == 2) {
        group.abort("out of disk");
        while (!group.broken())
          std::this_thread::yield();
      }
      all_reduce(group, 5000);
    });
    for (std::size_t i = 0; i < 2; ++i) {
      CHECK(errors[i].has_value() && errors[i]->kind() == ErrorKind::peer_lost);
      CHECK(std::string(errors[i]->what()).find("out of disk") != std::string::npos);
    }
    CHECK(errors[2].has_value() && errors[2]->kind() == ErrorKind::group_broken);
  }
}

TEST(a_broken_group_is_rebuilt_as_a_new_epoch_without_a_member) {
  Ranks ranks(4, impatient());
  ranks.hub->inject(1, 2, Fault::drop, 0);
  check_all(ranks.run([](Group& group) { all_reduce(group, 50000); }), ErrorKind::timeout);
  // Frames of the old epoch still lie in the boxes of the survivors.
  check_none(ranks.run([](Group& group) {
    if (group.rank() == 1) return;
    const auto rebuilt = group.rebuild({0, 2, 3});
    CHECK_EQUAL(rebuilt->epoch(), 1u);
    CHECK_EQUAL(rebuilt->size(), 3);
    for (int repeat = 0; repeat < 5; ++repeat)
      all_reduce(*rebuilt, 30000);
    rebuilt->close();
  }));
}

TEST(splits_that_disagree_are_refused) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(2), small_segments());
    check_all(ranks.run([](Group& group) {
      group.split({group.rank() == 0 ? std::vector<int>{0, 1} : std::vector<int>{1, 0}},
                  small_segments());
    }),
              ErrorKind::invalid_argument);
  }
}

TEST(missing_members_end_the_handshake) {
  for (const auto& kind : testing::fabric_kinds()) {
    const auto fabrics = kind.make(2);
    CHECK_THROWS(ErrorKind::timeout, Group::open(fabrics[0], impatient()));
  }
}

TEST(a_failure_told_before_the_handshake_has_ended_is_heard_after_it) {
  const auto hub = std::make_shared<MemoryHub>(3);
  hub->inject(1, 2, Fault::hold, 0);  // member 2 lacks this hello; 0 and 1 have all of theirs
  std::vector<std::shared_ptr<Group>> groups(3);
  std::vector<std::string> heard(3);
  const auto open_and_reduce = [&](std::size_t rank) {
    try {
      groups[rank] = Group::open(hub->fabric(static_cast<int>(rank)), {});
      if (rank == 0) groups[0]->abort("on purpose");
      std::vector<float> x(8);
      groups[rank]->all_reduce(view(x), view(x), {})->wait();
    } catch (const Error& error) {
      heard[rank] = error.what();
    }
  };
  std::thread first(open_and_reduce, 0), second(open_and_reduce, 1), third(open_and_reduce, 2);
  first.join();
  second.join();
  hub->release();
  third.join();
  for (std::size_t rank = 0; rank < 3; ++rank) {
    CHECK(groups[rank] != nullptr);
    CHECK(heard[rank].find("on purpose") != std::string::npos);
  }
}

TEST(a_group_goes_on_in_a_new_epoch_over_every_transport) {
  for (const auto& kind : testing::fabric_kinds()) {
    Ranks ranks(kind.make(3), small_segments());
    check_all(ranks.run([](Group& group) {
      std::vector<float> x(70000, group.rank() == 1 ? std::nanf("") : 1.0f);
      group.all_reduce(view(x), view(x), {})->wait();
    }),
              ErrorKind::non_finite);
    check_none(ranks.run([](Group& group) {
      const auto again = group.rebuild({0, 1, 2});
      for (int repeat = 0; repeat < 5; ++repeat)
        all_reduce(*again, 70000);
      again->close();
    }));
  }
}

TEST(arguments_are_checked_before_anything_is_sent) {
  Ranks ranks(2, small_segments());
  Group& group = *ranks.groups[0];
  auto x = input(0, 10), longer = input(0, 11);
  ReduceOptions bad_codec;
  bad_codec.codec = "zip";
  ReduceOptions bad_weight;
  bad_weight.reduce = ReduceOp::mean;
  bad_weight.weight = -1;
  CHECK_THROWS(ErrorKind::invalid_argument, group.all_reduce(view(x), view(longer), {}));
  CHECK_THROWS(ErrorKind::invalid_argument, group.all_reduce(view(x), view(x), bad_codec));
  CHECK_THROWS(ErrorKind::invalid_argument, group.all_reduce(view(x), view(x), bad_weight));
  CHECK_THROWS(ErrorKind::invalid_argument, group.broadcast(view(x), 2));
  CHECK_THROWS(ErrorKind::invalid_argument, algorithm_named("tree"));
  CHECK(!group.broken());
  check_none(ranks.run([](Group& each) { all_reduce(each, 100); }));
}

}  // namespace fedcomm
