#pragma once

#include <boost/context/stack_context.hpp>
#include <vector>

namespace sim {

/// Stacks for fibers, used again and again: also those of fibers that were killed and never
/// unwound. A page below each cannot be accessed.
class Stacks {
 public:
  static constexpr std::size_t kBytes = 256 * 1024;

  static boost::context::stack_context take();
  static void give_back(const boost::context::stack_context& stack);
};

}  // namespace sim
