#pragma once

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <type_traits>

#include "errors.hpp"

/// Checks that stay on in every build type: they print where and what, and abort.

namespace check {

[[noreturn]] inline void failed(const char* file, int line, const char* what) {
  std::cout.flush();
  std::fprintf(stderr, "%s:%d: CHECK failed: %s\n", file, line, what);
  std::abort();
}

template <typename T>
void print(const char* name, const T& value) {
  if constexpr (std::is_enum_v<T>) {
    std::cerr << "  " << name << " = " << static_cast<long long>(value) << "\n";
  } else if constexpr (requires { std::cerr << value; }) {
    std::cerr << "  " << name << " = " << value << "\n";
  }
}

}  // namespace check

#define CHECK(expression)                                                \
  do {                                                                   \
    if (!(expression)) ::check::failed(__FILE__, __LINE__, #expression); \
  } while (false)

#define CHECK_EQ(left, right)                                   \
  do {                                                          \
    const auto& check_left = (left);                            \
    const auto& check_right = (right);                          \
    if (!(check_left == check_right)) {                         \
      ::check::print(#left, check_left);                        \
      ::check::print(#right, check_right);                      \
      ::check::failed(__FILE__, __LINE__, #left " == " #right); \
    }                                                           \
  } while (false)

/// The expression throws beluga::Error of this kind.
#define CHECK_THROWS_KIND(expression, expected)                           \
  do {                                                                    \
    bool check_thrown = false;                                            \
    try {                                                                 \
      static_cast<void>(expression);                                      \
    } catch (const ::beluga::Error& error) {                              \
      check_thrown = true;                                                \
      if (error.kind != (expected)) {                                     \
        ::check::print("kind", error.kind);                               \
        ::check::failed(__FILE__, __LINE__, error.what());                \
      }                                                                   \
    }                                                                     \
    if (!check_thrown) {                                                  \
      ::check::failed(__FILE__, __LINE__, #expression " throws nothing"); \
    }                                                                     \
  } while (false)
