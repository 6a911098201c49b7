#include <nanobind/nanobind.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>

#include "bindings_chunks.hpp"
#include "bindings_geometry.hpp"
#include "bindings_keys.hpp"
#include "bindings_memory.hpp"
#include "bindings_probe.hpp"
#include "bindings_tasks.hpp"
#include "cache_instructions.hpp"
#include "errors.hpp"
#include "format.hpp"
#include "host_view.hpp"
#include "pool_core.hpp"

namespace beluga {

using namespace nb::literals;

namespace {

using Options = nb::typed<nb::dict, nb::str, nb::any>;

/// Name of the class in lmcache_beluga.errors.
const char* class_name(ErrorKind kind) {
  switch (kind) {
    case ErrorKind::pool_missing: return "PoolMissingError";
    case ErrorKind::not_a_pool: return "NotAPoolError";
    case ErrorKind::half_formatted: return "HalfFormattedError";
    case ErrorKind::version_mismatch: return "VersionMismatchError";
    case ErrorKind::key_scheme: return "KeySchemeError";
    case ErrorKind::pool_uuid: return "PoolUuidError";
    case ErrorKind::pool_truncated: return "PoolTruncatedError";
    case ErrorKind::pool_permission: return "PoolPermissionError";
    case ErrorKind::host_in_use: return "HostInUseError";
    case ErrorKind::pool_busy: return "PoolBusyError";
    case ErrorKind::no_space: return "NoSpaceError";
    case ErrorKind::chunk_too_large: return "ChunkTooLargeError";
    case ErrorKind::record_too_large: return "RecordTooLargeError";
    case ErrorKind::pool_closed: return "PoolClosedError";
    case ErrorKind::forked_handle: return "ForkedHandleError";
    case ErrorKind::unsupported: return "UnsupportedError";
    case ErrorKind::pool_io: return "PoolIOError";
    case ErrorKind::invalid_argument: return "InvalidArgumentError";
    case ErrorKind::corrupt_pool: return "CorruptPoolError";
  }
  return "BelugaError";
}

void raise_in_python(const Error& error) {
  try {
    const nb::object type = nb::module_::import_("lmcache_beluga.errors").attr(class_name(error.kind));
    PyErr_SetString(type.ptr(), error.what());
  } catch (nb::python_error&) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  }
}

std::vector<std::string> paths_of(nb::handle path) {
  if (nb::isinstance<nb::str>(path)) return {nb::cast<std::string>(path)};
  std::vector<std::string> paths;
  for (nb::handle one : nb::cast<nb::sequence>(path)) paths.push_back(nb::cast<std::string>(nb::str(one)));
  return paths;
}

template <class T>
void take(const Options& from, const char* name, T& to) {
  if (from.contains(name)) to = nb::cast<T>(from[name]);
}

FormatOptions format_options(const Options& d) {
  FormatOptions o;
  take(d, "max_hosts", o.max_hosts);
  take(d, "extent_size", o.extent_size);
  take(d, "chunk_hint", o.chunk_hint);
  take(d, "key_scheme", o.key_scheme);
  take(d, "mode", o.mode);
  take(d, "force", o.force);
  bool noncoherent = false;
  take(d, "noncoherent", noncoherent);
  bool direct = false;
  take(d, "direct", direct);
  if (noncoherent) {
    if (const char* why = why_not_noncoherent(); *why) {
      throw Error(ErrorKind::unsupported, std::string("visibility=noncoherent is not possible here: ") + why);
    }
    o.visibility = VisibilityMode::noncoherent;
  }
  if (direct) o.payload_visibility = PayloadVisibility::direct;
  return o;
}

AttachOptions attach_options(const Options& d) {
  AttachOptions o;
  take(d, "host_id", o.host_id);
  take(d, "uuid", o.uuid);
  take(d, "key_scheme", o.key_scheme);
  take(d, "takeover", o.takeover);
  take(d, "lease_ms", o.lease_ms);
  take(d, "pin_timeout_ms", o.pin_timeout_ms);
  take(d, "heartbeat_ms", o.heartbeat_ms);
  take(d, "dead_after_ms", o.dead_after_ms);
  take(d, "lock_timeout_ms", o.lock_timeout_ms);
  take(d, "open_timeout_ms", o.open_timeout_ms);
  take(d, "control_dir", o.control_dir);
  take(d, "mode", o.control_mode);
  take(d, "copy_threads", o.copy_threads);
  take(d, "prefault", o.prefault);
  take(d, "verify", o.verify);
  return o;
}

}  // namespace

Facts geometry_facts(const PoolMemory& pool) {
  const Superblock& sb = pool.sb();
  Facts d;
  d["uuid"] = uuid_text(sb.uuid);
  d["version"] = sb.version;
  d["epoch"] = sb.epoch;
  d["extent_size"] = sb.extent_size;
  d["extents"] = sb.extents;
  d["min_slot"] = sb.min_slot;
  d["max_slots"] = sb.slots_per_extent;
  d["buckets"] = sb.buckets;
  d["max_hosts"] = sb.max_hosts;
  d["record_bytes"] = sb.record_bytes;
  d["metadata_bytes"] = sb.metadata_bytes;
  d["visibility"] = sb.visibility == VisibilityMode::coherent ? "coherent" : "noncoherent";
  d["payload_visibility"] = sb.payload_visibility == PayloadVisibility::flush ? "flush" : "direct";
  d["key_scheme"] = std::string(sb.key_scheme);
  d["max_lease_ms"] = sb.max_lease_ms;
  d["created_unix_ms"] = sb.created_unix_ms;
  nb::list devices;
  for (std::uint32_t i = 0; i < sb.device_count; ++i) {
    const PoolFile& file = pool.devices()[i]->file();
    nb::dict device;
    device["path"] = file.path();
    device["size"] = sb.devices[i].bytes;
    device["kind"] = to_string(file.kind());
    device["extents"] = sb.devices[i].extents;
    device["address"] = reinterpret_cast<std::uintptr_t>(pool.devices()[i]->base());
    devices.append(device);
  }
  d["devices"] = devices;
  return d;
}

}  // namespace beluga

NB_MODULE(_native, m) {
  using namespace beluga;
  using namespace nb::literals;
  // An engine that exits without closing its pool is no reason to print at people.
  nb::set_leak_warnings(false);
  m.doc() = "The core of lmcache-beluga. Use lmcache_beluga.Pool.";
  nb::register_exception_translator(
      [](const std::exception_ptr& p, void*) {
        try {
          std::rethrow_exception(p);
        } catch (const Error& error) {
          raise_in_python(error);
        }
      },
      nullptr);
  bind_keys(m);
  bind_chunks(m);

  m.def(
      "format",
      [](nb::handle path, std::uint64_t size, const Options& options) {
        const auto paths = paths_of(path);
        const FormatOptions o = format_options(options);
        nb::gil_scoped_release unlocked;
        format_pool(paths, size, o);
      },
      "path"_a, "size"_a, "options"_a);
  m.def(
      "geometry",
      [](nb::handle path) {
        const auto paths = paths_of(path);
        std::shared_ptr<PoolMemory> pool;
        {
          nb::gil_scoped_release unlocked;
          pool = open_pool(paths, 30'000);
        }
        return geometry_facts(*pool);
      },
      "path"_a);
  m.def(
      "hosts",
      [](nb::handle path, std::uint32_t watch_ms) {
        const auto paths = paths_of(path);
        std::vector<HostView> views;
        {
          nb::gil_scoped_release unlocked;
          views = watch_hosts(*open_pool(paths, 30'000), watch_ms);
        }
        return host_facts(views);
      },
      "path"_a, "watch_ms"_a);
  m.def(
      "attach",
      [](nb::handle path, const Options& options) {
        const auto paths = paths_of(path);
        const AttachOptions o = attach_options(options);
        nb::gil_scoped_release unlocked;
        return attach_pool(open_pool(paths, o.open_timeout_ms), o);
      },
      "path"_a, "options"_a);
  m.def(
      "open",
      [](nb::handle path, std::uint64_t size, const Options& format, const Options& options) {
        const auto paths = paths_of(path);
        const FormatOptions f = format_options(format);
        const AttachOptions o = attach_options(options);
        nb::gil_scoped_release unlocked;
        return attach_pool(open_or_format_pool(paths, size, f, o.open_timeout_ms), o);
      },
      "path"_a, "size"_a, "format"_a, "options"_a);
  m.def(
      "copy_bandwidth",
      [](nb::handle to, nb::handle from, bool to_pool, int threads) {
        const HeldBuffer target(to, true);
        const HeldBuffer source(from, false);
        const std::size_t n = std::min(target.bytes().size(), source.bytes().size());
        nb::gil_scoped_release unlocked;
        CopyEngine engine(threads);
        const auto start = std::chrono::steady_clock::now();
        if (to_pool) {
          engine.copy_to_pool(target.bytes().data(), source.bytes().data(), n);
        } else {
          engine.copy_from_pool(target.bytes().data(), source.bytes().data(), n);
        }
        const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
        return static_cast<double>(n) / seconds.count();
      },
      "target"_a, "source"_a, "to_pool"_a, "threads"_a, "Bytes per second of one copy by the streaming engine.");

  bind_pool(m);
  bind_probe(m);
  bind_tasks(m);
}
