"""The C library's allocator, as training on a CPU needs it."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # as malloc.h of glibc numbers them


def keep_freed_memory() -> bool:
    """Let freed memory stay with the process; return whether the C library can do that.

    glibc takes each large block from the system and gives it back when it is freed, so the system clears every page of
    every temporary tensor again: on a CPU that takes longer than most operations that fill them.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
