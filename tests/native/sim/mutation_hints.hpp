#pragma once

#include "duel.hpp"
#include "sync_point.hpp"

namespace sim {

/// Which duel is likely to find out that a step is missing; null: any. Only a matter of time: what it does not find,
/// the others look for.
inline const Duel* likely_duel(beluga::Point point, beluga::Step) {
  using beluga::Point;
  switch (point) {
    case Point::closing:
    case Point::reopen:
    case Point::stamp:
      return &kLeaseDuel;
    case Point::stamp_lowered:
      return &kLoweredDuel;
    case Point::renewal:
      return &kRenewalDuel;
    case Point::freed:
    case Point::heartbeat:
    case Point::lease_epoch:
      return &kPauseDuel;
    case Point::identity:
      return &kJoinDuel;
    case Point::claim:
      return &kElectionDuel;
    case Point::release:
    case Point::void_slot:
      return &kHandoverDuel;
    case Point::header:
      return &kPowerDuel;
    case Point::recovery:
      return &kTakeoverDuel;
    case Point::request:
    case Point::request_head:
    case Point::acknowledge:
      return &kRequestDuel;
    case Point::superblock:
      return &kFormatDuel;
    default:
      return &kPublicationDuel;
  }
}

/// The scenario that does, where no duel is likely to; null: none is known.
inline const char* likely_scenario(beluga::Point point, beluga::Step step) {
  using beluga::Point;
  if (point == Point::renewal && step != beluga::Step::confirm_flush) return "renewal_after_expiry";
  if (point == Point::claim && step == beluga::Step::check) return "dead_rival";
  if (point == Point::acknowledge) return "full_ring";
  if (point == Point::release) return "dirty_after_handover";
  if (point == Point::writing) return "forced_format";
  if (point == Point::heartbeat && step == beluga::Step::check) return "paused_reader";
  return nullptr;
}

}  // namespace sim
