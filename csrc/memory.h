// Hints to the operating system about buffers that the caller owns.
#pragma once

#include <cstdint>

namespace w2s {

// Prefer 2 MiB pages for the whole huge pages inside [address, address + bytes).
void advise_huge(uintptr_t address, uint64_t bytes);

}  // namespace w2s
