#pragma once

#include <stdexcept>
#include <string>

namespace beluga {

/// What went wrong; each kind reaches Python as its own exception class (lmcache_beluga/errors.py).
enum class ErrorKind {
  pool_missing,
  not_a_pool,
  half_formatted,
  version_mismatch,
  key_scheme,
  pool_uuid,
  pool_truncated,
  pool_permission,
  host_in_use,
  pool_busy,
  no_space,
  chunk_too_large,
  record_too_large,
  pool_closed,
  forked_handle,
  unsupported,
  pool_io,
  invalid_argument,
  corrupt_pool,
};

/// The one exception the core throws. The message names the setting and the fix.
struct Error : std::runtime_error {
  Error(ErrorKind k, const std::string& message) : std::runtime_error(message), kind(k) {}
  ErrorKind kind;
};

}  // namespace beluga
