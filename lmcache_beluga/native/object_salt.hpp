#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string_view>

namespace beluga {

/// The cache_salt in the record of an ObjectKey, as it lies there; nothing for any other record. See key_record.hpp
/// for the form.
std::optional<std::string_view> object_salt(std::span<const std::byte> record) noexcept;

}  // namespace beluga
