"""The C library's memory allocator, set up for a process through which large messages pass."""

import ctypes
import logging

log = logging.getLogger(__name__)

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8

# A chunk's buffers are taken from memory that the process keeps, instead of fresh pages that the kernel has
# to clear each time: blocks of up to 32 MiB, glibc's limit, with 128 MiB kept for the next. Two arenas, so
# that not every thread keeps as much. benchmarks/transport.py measures what that brings.
SETTINGS = {_M_MMAP_THRESHOLD: 32 << 20, _M_TRIM_THRESHOLD: 128 << 20, _M_ARENA_MAX: 2}


# What a process may keep of freed memory beyond a computation. Blocks below the threshold above are not
# returned by themselves: after an alignment that is most of what it held.
_MOST_KEPT = 256 << 20


class _Held(ctypes.Structure):
    """glibc's mallinfo2: what its arenas hold, in bytes."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def give_back() -> None:
    """Return freed memory to the system where there is much of it. Does nothing without glibc 2.33."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallinfo2") or not hasattr(library, "malloc_trim"):
        return
    library.mallinfo2.restype = _Held
    if library.mallinfo2().fordblks > _MOST_KEPT:
        library.malloc_trim(ctypes.c_size_t(0))


def set_up_allocator() -> None:
    """Have freed buffers used again, from now on. Does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for setting, value in SETTINGS.items():
        if mallopt is None or not mallopt(setting, value):
            log.debug("the C library does not take mallopt(%d, %d)", setting, value)
