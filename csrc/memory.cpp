// A large buffer that is written once spends most of its time in page faults: use huge pages.
#include "memory.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace w2s {

void advise_huge(uintptr_t address, uint64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{1} << 21;
  const uintptr_t begin = (address + page - 1) & ~(page - 1), end = (address + bytes) & ~(page - 1);
  // A hint: it may be refused.
  if (begin < end) (void)madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)address, (void)bytes;
#endif
}

}  // namespace w2s
