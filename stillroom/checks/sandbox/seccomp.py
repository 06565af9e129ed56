"""A seccomp filter in plain Python: which system calls the confined program may not make.

Linux only, x86-64 and arm64. The filter is a list of classic BPF instructions, as seccomp(2) describes. A refused call fails
with EPERM, so that the program sees an ordinary error; clone3, whose flags a filter cannot read, fails with ENOSYS and
libraries fall back to clone.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
# name: (x86-64, arm64); None where the architecture does not have it.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198),
    "fork": (57, None),
    "vfork": (58, None),
    "execve": (59, 221),
    "execveat": (322, 281),
    "setsid": (112, 157),
    "setpgid": (109, 154),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "kcmp": (312, 272),
    "setpriority": (141, 140),
    "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122),
    "sched_setattr": (314, 274),
    "ioprio_set": (251, 30),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    "process_madvise": (440, 440),
    "process_mrelease": (448, 448),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "mq_open": (240, 180),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "sethostname": (170, 161),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "open_by_handle_at": (304, 265),
    "setuid": (105, 146),
    "setgid": (106, 144),
    "setrlimit": (160, 164),
}
_REFUSED_TO_WRITE: dict[str, tuple[int | None, int | None]] = {
    "creat": (85, None),
    "openat2": (437, 437),
    "truncate": (76, 45),
    "ftruncate": (77, 46),
    "rename": (82, None),
    "renameat": (264, 38),
    "renameat2": (316, 276),
    "mkdir": (83, None),
    "mkdirat": (258, 34),
    "rmdir": (84, None),
    "link": (86, None),
    "linkat": (265, 37),
    "unlink": (87, None),
    "unlinkat": (263, 35),
    "symlink": (88, None),
    "symlinkat": (266, 36),
    "chmod": (90, None),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "chown": (92, None),
    "fchown": (93, 55),
    "lchown": (94, None),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "fsetxattr": (190, 7),
}
"""Refused as well where no file system of its own keeps the program from other files."""
_OPEN = {"x86_64": ((2, 1), (257, 2)), "aarch64": ((56, 2),)}
"""open and openat: (number, which argument holds the flags)."""
_CLONE, _CLONE3 = {"x86_64": 56, "aarch64": 220}, 435
_KILL, _TGKILL = {"x86_64": 62, "aarch64": 129}, {"x86_64": 234, "aarch64": 131}
_TKILL = {"x86_64": 200, "aarch64": 130}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
_FCNTL, _SET_OWNERS = {"x86_64": 72, "aarch64": 25}, (8, 15)
"""fcntl, and those of its commands (F_SETOWN, F_SETOWN_EX) that have the kernel send signals to another process."""

_CLONE_THREAD = 0x10000
_WRITING = 0x1 | 0x2 | 0x40 | 0x200 | 0x400  # O_WRONLY, O_RDWR, O_CREAT, O_TRUNC, O_APPEND
_X32 = 0x40000000
_ALLOW, _FAIL, _DIE = 0x7FFF0000, 0x00050000, 0x80000000
# Offsets into struct seccomp_data: nr, arch, instruction pointer (64 bits), six arguments (64 bits each).
_NR, _ARCH, _ARGUMENTS = 0, 4, 16
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_Instruction = tuple[int, int, int, int]


def available() -> bool:
    """Whether this kind of machine is known here."""
    return platform.system() == "Linux" and platform.machine() in _AUDIT_ARCH


def confine(*, own_files: bool, pid: int) -> None:
    """Give up, for good, the system calls that a program under test does not need.

    No sockets, no new processes (threads may be started), no signals to others, no mounts, no tracing, no kernel interfaces.

    Args:
        own_files: the program has a file system of its own; where it has none, it may not write any file.
        pid: this process's id, the only one that it may signal.

    Raises:
        OSError: the kernel refuses.
    """
    program = b"".join(struct.pack("HBBI", *line) for line in instructions(own_files=own_files, pid=pid))
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))

    libc = ctypes.CDLL(None, use_errno=True)
    header = Program(len(program) // 8, ctypes.addressof(code))
    no_new_privileges, seccomp, filter_mode = 38, 22, 2
    if libc.prctl(no_new_privileges, 1, 0, 0, 0) or libc.prctl(
        seccomp, filter_mode, ctypes.byref(header), 0, 0
    ):
        number = ctypes.get_errno()
        raise OSError(number, f"seccomp: {errno.errorcode.get(number, number)}")


def instructions(*, own_files: bool, pid: int) -> list[_Instruction]:
    """The filter for this machine, one (code, jump if true, jump if false, constant) each."""
    machine = platform.machine()
    column = list(_AUDIT_ARCH).index(machine)
    refused = _REFUSED if own_files else _REFUSED | _REFUSED_TO_WRITE
    lines: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, _AUDIT_ARCH[machine]),
        (_RETURN, 0, 0, _DIE),
        (_LOAD, 0, 0, _NR),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
    ]
    for pair in refused.values():
        if (number := pair[column]) is not None:
            lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    lines += [(_EQUAL, 0, 1, _CLONE3), (_RETURN, 0, 0, _FAIL | errno.ENOSYS)]
    lines += _unless(_CLONE[machine], 0, (_ANY_BIT, _CLONE_THREAD))
    # No new limits, and none for others: the address of a limit may end in zeros, and only its low word is read here.
    lines += _unless(_PRLIMIT[machine], 2, (_EQUAL, 0))
    lines += _unless(_PRLIMIT[machine], 0, (_EQUAL, 0))
    for command in _SET_OWNERS:
        lines += _if(_FCNTL[machine], 1, command)
    for number in (_KILL[machine], _TGKILL[machine]):
        lines += _unless(number, 0, (_EQUAL, pid))
    lines += [(_EQUAL, 0, 1, _TKILL[machine]), (_RETURN, 0, 0, _FAIL | errno.EPERM)]
    if not own_files:
        for number, argument in _OPEN[machine]:
            # Jumps over the refusal when no writing bit is set, into it when one is.
            lines += [
                (_EQUAL, 0, 4, number),
                (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
                (_ANY_BIT, 0, 1, _WRITING),
                (_RETURN, 0, 0, _FAIL | errno.EROFS),
                (_LOAD, 0, 0, _NR),
            ]
    return [*lines, (_RETURN, 0, 0, _ALLOW)]


def _if(number: int, argument: int, value: int) -> list[_Instruction]:
    """Refuse a call if the low word of one of its arguments has a value."""
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        (_EQUAL, 0, 1, value),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_LOAD, 0, 0, _NR),
    ]


def _unless(number: int, argument: int, test: tuple[int, int]) -> list[_Instruction]:
    """Refuse a call unless the low word of one of its arguments passes a test."""
    return [
        (_EQUAL, 0, 4, number),
        (_LOAD, 0, 0, _ARGUMENTS + 8 * argument),
        (test[0], 1, 0, test[1]),
        (_RETURN, 0, 0, _FAIL | errno.EPERM),
        (_LOAD, 0, 0, _NR),
    ]
