#pragma once

#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <filesystem>
#include <string>

#include "check.hpp"

/// Real files for tests, in a directory that goes away even when a check aborts.

namespace scratch {

/// Runs body() in a child and returns its wait status.
template <typename Body>
int in_child(Body body) {
  std::fflush(nullptr);
  pid_t child = ::fork();
  CHECK(child >= 0);
  if (child == 0) {
    try {
      body();
    } catch (const std::exception& error) {
      std::fprintf(stderr, "uncaught: %s\n", error.what());
      std::abort();
    }
    std::fflush(nullptr);
    ::_exit(0);
  }
  int status = 0;
  CHECK(::waitpid(child, &status, 0) == child);
  return status;
}

inline bool succeeded(int status) { return WIFEXITED(status) && WEXITSTATUS(status) == 0; }

/// Runs body(directory) in a child with a fresh directory on tmpfs, removes the directory whatever
/// became of the child, and returns the exit status for main().
template <typename Body>
int run(Body body) {
  std::string directory = "/dev/shm/beluga-test-XXXXXX";
  CHECK(::mkdtemp(directory.data()) != nullptr);
  int status = in_child([&] {
    body(directory);
    std::exit(0);  // unlike _exit, looks for leaks under a sanitizer
  });
  std::error_code ignored;
  std::filesystem::remove_all(directory, ignored);
  if (succeeded(status)) return 0;
  std::fprintf(stderr, "test failed (wait status %d)\n", status);
  return 1;
}

}  // namespace scratch
