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

}  // namespace sim
