"""A world of one's own for a confined program: users, processes, network, and files that cannot be changed.

Linux namespaces, without any privilege where the kernel lets ordinary users make them (user_namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import struct
from contextlib import suppress
from pathlib import Path

_NEW_MOUNTS, _NEW_HOSTNAME, _NEW_IPC = 0x00020000, 0x04000000, 0x08000000
_NEW_USERS, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000
_EVERYTHING = _NEW_USERS | _NEW_MOUNTS | _NEW_PROCESSES | _NEW_NETWORK | _NEW_IPC | _NEW_HOSTNAME

_READ_ONLY, _NO_SUID, _NO_DEVICES, _NO_EXECUTION = 1, 2, 4, 8
_BIND, _RECURSIVE, _PRIVATE = 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE = 442, -100, 0x8000
_DEVICES = ("null", "zero", "full", "urandom", "random")
_DIE_WITH_PARENT, _DROP_BOUND, _CAPABILITIES = 1, 24, 41
_INSIDE = 1000
"""The user's number inside; not 0, so that nothing that it starts regains a capability."""

SCRATCH = "/tmp"
"""The only folder inside that can be written to: in memory, empty at the start, of limited size."""

_libc = ctypes.CDLL(None, use_errno=True)


def enter(scratch_bytes: int) -> None:
    """Move this process into a world of its own; returns in a new process, the first of that world.

    The old process waits for the new one and leaves as it left. Everything is mounted read-only, /dev holds five harmless
    devices, /proc shows the new world alone, and SCRATCH is an empty folder in memory.

    Args:
        scratch_bytes: what all files in SCRATCH may hold together.

    Raises:
        OSError: the kernel does not allow it. Nothing is half done where the first step is what fails.
    """
    user, group = os.getuid(), os.getgid()
    _call(_libc.unshare(_EVERYTHING), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{_INSIDE} {user} 1")
    Path("/proc/self/gid_map").write_text(f"{_INSIDE} {group} 1")
    child = os.fork()
    if child:
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            os._exit(128 + os.WTERMSIG(status))
        os._exit(os.WEXITSTATUS(status))
    die_with_parent()
    _own_files(scratch_bytes)


def counts_its_own_processes() -> bool:
    """Whether the kernel counts a limit on processes in each user namespace apart, as it does since Linux 5.14."""
    known = re.match(r"(\d+)\.(\d+)", platform.release())
    return known is not None and (int(known[1]), int(known[2])) >= (5, 14)


def die_with_parent() -> None:
    """Be killed when the process that started this one ends, however it ends (Linux)."""
    if platform.system() == "Linux":
        _libc.prctl(_DIE_WITH_PARENT, signal.SIGKILL, 0, 0, 0)


def drop_capabilities() -> None:
    """Give up every capability, for this process and all that follow."""
    for number in range(_CAPABILITIES):
        _libc.prctl(_DROP_BOUND, number, 0, 0, 0)
    header = ctypes.create_string_buffer(struct.pack("Ii", 0x20080522, 0))
    nothing = ctypes.create_string_buffer(24)
    _call(_libc.capset(header, nothing), "capset")


def _own_files(scratch_bytes: int) -> None:
    _mount(None, "/", None, _RECURSIVE | _PRIVATE)
    # struct mount_attr: set, clear, propagation, user namespace; AT_RECURSIVE reaches every mount below.
    wanted = struct.pack("QQQQ", _READ_ONLY | _NO_SUID, 0, 0, 0)
    _call(_libc.syscall(_MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, wanted, len(wanted)), "mount_setattr")
    room = f"size={scratch_bytes},nr_inodes=1024,mode=0700"
    # A folder of devices is built in memory and laid over /dev, whose disks and terminals go out of reach.
    _mount("tmpfs", SCRATCH, "tmpfs", _NO_SUID | _NO_EXECUTION, "size=64k,mode=0755")
    for name in _DEVICES:
        Path(SCRATCH, name).touch()
        _mount(f"/dev/{name}", f"{SCRATCH}/{name}", None, _BIND)
    _mount(SCRATCH, "/dev", None, _BIND | _RECURSIVE)
    _mount("tmpfs", SCRATCH, "tmpfs", _NO_SUID | _NO_DEVICES, room)
    with suppress(
        OSError
    ):  # containers that mask parts of /proc forbid a fresh one; theirs is read-only by now
        _mount("proc", "/proc", "proc", _READ_ONLY | _NO_SUID | _NO_DEVICES | _NO_EXECUTION)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    encoded = [None if text is None else text.encode() for text in (source, target, kind, options)]
    source_, target_, kind_, options_ = encoded
    _call(_libc.mount(source_, target_, kind_, ctypes.c_ulong(flags), options_), f"mount {target}")


def _call(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
