"""How much memory this process could still get from the machine. Needs no torch."""

import os
from collections.abc import Iterator
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_GROUPS = Path("/sys/fs/cgroup")
_OWN_GROUP = Path("/proc/self/cgroup")


def available_bytes() -> int:
    """What the machine has left, within the limits of this process's groups."""
    return min([_machine_bytes(), *_group_bytes()])


def _machine_bytes() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _group_bytes() -> Iterator[int]:
    """What each cgroup (version 2) around this process has left: a container may have less than its machine."""
    try:
        lines = _OWN_GROUP.read_text().splitlines()
    except OSError:  # another system, or /proc is not mounted
        return
    for own in [line.removeprefix("0::/") for line in lines if line.startswith("0::/")]:
        path = _GROUPS / own
        for group in (path, *path.parents):
            if group.is_relative_to(_GROUPS):
                try:
                    most = (group / "memory.max").read_text().strip()
                    used = int((group / "memory.current").read_text())
                    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                except OSError:  # this group counts no memory
                    continue
                if most != "max":  # cached files count as used, but can be evicted
                    yield max(0, int(most) - used + int(stat["inactive_file"]))
