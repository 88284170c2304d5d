"""Wake the client on time even if it shares the processor with the server it measures."""

import ctypes
import os
import platform
import struct
import sys

_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # the numbers of the system call
_SLICE_NS = 100_000  # the shortest slice that Linux grants


def ask_for_short_slices() -> bool:
    """Have Linux run this thread soon after it wakes, in short slices; return whether Linux agreed.

    The thread's share of the processor is unchanged: it only gets its short slices earlier. This works from Linux 6.12
    on; older versions agree but change nothing. With two cores shared with a busy server and 40 requests per second,
    the 99th percentile of the lag is 2.7 to 3.6 ms (a default slice) without it and 0.6 to 0.7 ms with it. It stays at
    3.5 ms if the server runs in another session (setsid, another terminal) and Linux groups processes by session.
    """
    number = _SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    # struct sched_attr: size, policy, flags, nice, priority, runtime, deadline, period
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    attributes = struct.pack("=IIQiIQQQ", 48, os.SCHED_OTHER, 0, nice, 0, _SLICE_NS, 0, 0)
    return int(ctypes.CDLL(None).syscall(number, 0, ctypes.c_char_p(attributes), 0)) == 0
