#include "process_heap.hpp"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace sim {

thread_local constinit ProcessHeap* ProcessHeap::current = nullptr;

struct ProcessHeapAccess {
  static ProcessHeap::Links& ends(ProcessHeap& heap) { return heap.ends_; }
};

namespace {

/// In front of every block. `start`: what malloc returned.
struct Header {
  ProcessHeap::Links links;
  void* start;
  std::uint64_t unused;
};
static_assert(sizeof(Header) == 32);

void* allocate(std::size_t bytes, std::size_t alignment) {
  const std::size_t before = alignment > sizeof(Header) ? alignment : sizeof(Header);
  void* const start =
      alignment > alignof(std::max_align_t)
          ? std::aligned_alloc(alignment, (before + bytes + alignment - 1) / alignment * alignment)
          : std::malloc(before + bytes);
  if (!start) throw std::bad_alloc();
  std::byte* const block = static_cast<std::byte*>(start) + before;
  auto* header = reinterpret_cast<Header*>(block) - 1;
  header->start = start;
  header->links = {nullptr, nullptr};
  if (ProcessHeap* heap = ProcessHeap::current) {
    ProcessHeap::Links& ends = ProcessHeapAccess::ends(*heap);
    header->links = {ends.next, &ends};
    ends.next->before = &header->links;
    ends.next = &header->links;
  }
  return block;
}

void release(void* block) noexcept {
  if (!block) return;
  auto* header = static_cast<Header*>(block) - 1;
  if (header->links.next) {
    header->links.next->before = header->links.before;
    header->links.before->next = header->links.next;
  }
  std::free(header->start);
}

}  // namespace

void ProcessHeap::free_all() noexcept {
  while (ends_.next != &ends_) release(reinterpret_cast<Header*>(ends_.next) + 1);
}

void ProcessHeap::detach() noexcept {
  while (ends_.next != &ends_) {
    Links* links = ends_.next;
    ends_.next = links->next;
    *links = {nullptr, nullptr};
  }
  ends_.before = &ends_;
}

}  // namespace sim

void* operator new(std::size_t bytes) { return sim::allocate(bytes, 16); }
void* operator new(std::size_t bytes, std::align_val_t alignment) {
  return sim::allocate(bytes, static_cast<std::size_t>(alignment));
}
void operator delete(void* block) noexcept { sim::release(block); }
void operator delete(void* block, std::size_t) noexcept { sim::release(block); }
void operator delete(void* block, std::align_val_t) noexcept { sim::release(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { sim::release(block); }
