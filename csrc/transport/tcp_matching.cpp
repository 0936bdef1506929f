#include "transport/tcp_matching.h"

#include <algorithm>
#include <cstring>

namespace fedcomm::tcp {
namespace {

std::size_t position_of(int rank, const std::vector<int>& ranks) {
  return static_cast<std::size_t>(std::find(ranks.begin(), ranks.end(), rank) - ranks.begin());
}

}  // namespace

void Matcher::open(GroupId id, std::vector<int> ranks, std::shared_ptr<Inbox> inbox) {
  Channel& channel = channels_[id];
  channel.ranks = std::move(ranks);
  channel.inbox = std::move(inbox);
}

std::vector<IncomingPtr> Matcher::close(GroupId id) {
  std::vector<IncomingPtr> dropped;
  const auto [newest, is_new] = closed_.try_emplace(id.group, id.epoch);
  if (!is_new) newest->second = std::max(newest->second, id.epoch);
  for (auto it = channels_.lower_bound({id.group, 0});
       it != channels_.end() && it->first <= GroupId{id.group, newest->second};) {
    for (auto& [key, frames] : it->second.waiting) {
      for (auto& [number, frame] : frames) {
        frame->matched = true;
        dropped.push_back(frame);
      }
    }
    it = channels_.erase(it);
  }
  return dropped;
}

bool Matcher::is_closed(GroupId id) const {
  const auto found = closed_.find(id.group);
  return found != closed_.end() && id.epoch <= found->second;
}

void Matcher::match(Incoming& frame, PostedReceive receive) {
  frame.matched = true;
  frame.receive = std::move(receive);
}

void Matcher::arrive(const IncomingPtr& frame, bool all_before) {
  if (is_closed(frame->channel)) {
    frame->matched = true;  // with nothing: its bytes are read and forgotten
    return;
  }
  Channel& channel = channels_[frame->channel];
  channel.waiting[frame->key][frame->number] = frame;
  if (!frame->ordered || all_before) retry(frame);
}

bool Matcher::retry(const IncomingPtr& frame) {
  const auto found = channels_.find(frame->channel);
  if (found == channels_.end()) return false;
  Channel& channel = found->second;
  const auto frames = channel.waiting.find(frame->key);
  const auto posted = channel.posted.find(frame->key);
  if (frames == channel.waiting.end() || posted == channel.posted.end()) return false;
  if (frames->second.empty() || frames->second.begin()->second != frame) return false;
  match(*frame, std::move(posted->second.front()));
  posted->second.pop_front();
  if (posted->second.empty()) channel.posted.erase(posted);
  frames->second.erase(frames->second.begin());
  if (frames->second.empty()) channel.waiting.erase(frames);
  return true;
}

IncomingPtr Matcher::post(GroupId id, const MatchKey& key, PostedReceive receive,
                          std::uint64_t all_before) {
  const auto found = channels_.find(id);
  if (found == channels_.end()) return nullptr;  // closed meanwhile
  Channel& channel = found->second;
  const auto frames = channel.waiting.find(key);
  const bool others_wait = channel.posted.contains(key);
  if (!others_wait && frames != channel.waiting.end()) {
    const IncomingPtr frame = frames->second.begin()->second;
    if (!frame->ordered || frame->number <= all_before) {
      match(*frame, std::move(receive));
      frames->second.erase(frames->second.begin());
      if (frames->second.empty()) channel.waiting.erase(frames);
      return frame;
    }
  }
  channel.posted[key].push_back(std::move(receive));
  return nullptr;
}

void Matcher::cancel(GroupId id, RequestId receive) {
  const auto found = channels_.find(id);
  if (found == channels_.end()) return;
  std::vector<MatchKey> keys;
  for (const auto& [key, posted] : found->second.posted)
    keys.push_back(key);
  for (const MatchKey& key : keys) {
    if (withdraw(id, key, receive)) return;
  }
}

bool Matcher::withdraw(GroupId id, const MatchKey& key, RequestId receive) {
  const auto channel = channels_.find(id);
  if (channel == channels_.end()) return false;
  const auto posted = channel->second.posted.find(key);
  if (posted == channel->second.posted.end()) return false;
  const auto n_removed =
      std::erase_if(posted->second, [&](const PostedReceive& each) { return each.id == receive; });
  if (posted->second.empty()) channel->second.posted.erase(posted);
  return n_removed > 0;
}

void Matcher::fail(int rank, ErrorKind kind, const std::string& why) {
  for (auto& [id, channel] : channels_) {
    for (auto it = channel.posted.begin(); it != channel.posted.end();) {
      if (it->first.rank != rank) {
        ++it;
        continue;
      }
      for (const PostedReceive& each : it->second)
        channel.inbox->complete({each.id, 0, why, kind});
      it = channel.posted.erase(it);
    }
  }
}

void Matcher::deliver(Incoming& frame) {
  const auto found = channels_.find(frame.channel);
  if (found == channels_.end() || !frame.receive.buffer) return;
  Completion completion{frame.receive.id, frame.n_bytes, {}};
  if (frame.n_bytes > frame.receive.buffer->size()) {
    completion.error = "frame of " + std::to_string(frame.n_bytes) + " bytes, room for " +
                       std::to_string(frame.receive.buffer->size());
  } else if (frame.early && frame.n_bytes > 0) {
    std::memcpy(frame.receive.buffer->data(), frame.buffer->data(), frame.n_bytes);
  }
  found->second.inbox->complete(std::move(completion));
}

void Matcher::moved(GroupId id, int rank, std::size_t n_bytes) {
  const auto found = channels_.find(id);
  if (found == channels_.end() || !found->second.inbox) return;
  const std::size_t member = position_of(rank, found->second.ranks);
  if (member < found->second.ranks.size()) found->second.inbox->moved(member, n_bytes);
}

}  // namespace fedcomm::tcp
