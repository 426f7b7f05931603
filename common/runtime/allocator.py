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


def set_up_allocator() -> None:
    """Have freed buffers used again, from now on. Does nothing where the C library is not glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for setting, value in SETTINGS.items():
        if mallopt is None or not mallopt(setting, value):
            log.debug("the C library does not take mallopt(%d, %d)", setting, value)
