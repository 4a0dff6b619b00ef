"""Takes from this process all rights but reading a few files: Landlock, seccomp, limits.

What the kernel lacks is left out; `protections` says what it has.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 22, 38
_SIGKILL = 9

_LANDLOCK_CREATE_RULESET, _LANDLOCK_ADD_RULE, _LANDLOCK_RESTRICT_SELF = 444, 445, 446
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
"""Number of rights on files by version of Landlock; 16 from version 5 on."""
_NET_RIGHTS = 0b11  # bind and connect TCP, from version 4 on
_SCOPES = 0b11  # abstract sockets and signals, from version 6 on

_FORBIDDEN = {
    "x86_64": (
        0xC000003E,
        {
            "socket": 41, "connect": 42, "fork": 57, "vfork": 58, "execve": 59,
            "execveat": 322, "kill": 62, "tkill": 200, "tgkill": 234, "pidfd_open": 434,
            "pidfd_getfd": 438, "ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311,
            "prlimit64": 302, "mount": 165, "unshare": 272, "setns": 308, "bpf": 321,
            "perf_event_open": 298, "keyctl": 250, "add_key": 248, "request_key": 249,
            "io_uring_setup": 425, "userfaultfd": 323, "open_by_handle_at": 304, "shmget": 29,
            "shmat": 30, "msgget": 68, "semget": 64, "mq_open": 240, "chmod": 90, "fchmod": 91,
            "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
            "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280,
            "setxattr": 188, "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197,
            "lremovexattr": 198, "fremovexattr": 199, "setpriority": 141, "ioprio_set": 251,
            "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203,
            "sched_setattr": 314, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
            "pidfd_send_signal": 424, "inotify_init": 253, "inotify_init1": 294,
            "fanotify_init": 300, "clone3": 435, "clone": 56,
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            "socket": 198, "connect": 203, "execve": 221, "execveat": 281,
            "kill": 129, "tkill": 130, "tgkill": 131, "pidfd_open": 434, "pidfd_getfd": 438,
            "ptrace": 117, "process_vm_readv": 270, "process_vm_writev": 271, "prlimit64": 261,
            "mount": 40, "unshare": 97, "setns": 268, "bpf": 280, "perf_event_open": 241,
            "keyctl": 219, "add_key": 217, "request_key": 218, "io_uring_setup": 425,
            "userfaultfd": 282, "open_by_handle_at": 265, "shmget": 194, "shmat": 196,
            "msgget": 186, "semget": 190, "mq_open": 180, "fchmod": 52, "fchmodat": 53,
            "fchmodat2": 452, "fchownat": 54, "fchown": 55, "utimensat": 88, "setxattr": 5,
            "lsetxattr": 6, "fsetxattr": 7, "removexattr": 14, "lremovexattr": 15,
            "fremovexattr": 16, "setpriority": 140, "ioprio_set": 30, "sched_setparam": 118,
            "sched_setscheduler": 119, "sched_setaffinity": 122, "sched_setattr": 274,
            "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "pidfd_send_signal": 424,
            "inotify_init1": 26, "fanotify_init": 262, "clone3": 435, "clone": 220,
        },
    ),
}  # fmt: skip
"""Machine → its number in seccomp, and the system calls that reading a file never needs."""

_THREAD = 0x10000
"""Flag of clone: a thread, not a process."""

_ENOSYS, _EPERM = 38, 1
_MAX_FILES = 256


def protections() -> dict[str, bool]:
    """Say which protections this machine has: protection → whether it does."""
    return {
        "no other files (Landlock)": _landlock_version() > 0,
        "no network, no other programs (seccomp)": _seccomp_is_there(),
        "limits of memory, time and files written": True,
    }


def confine(files: Iterable[Path], folders: Iterable[Path], memory: int) -> None:
    """Confine this process, for good, to reading files; it ends when its parent does.

    Python's own code stays readable, because codecs are loaded when they are needed.

    Args:
        files: files that stay readable, and folders with all that lies below them.
        folders: folders that may be listed; their files are not readable by that.
        memory: bytes that the process may take on top of those that it has.

    Raises:
        OSError: the kernel has a protection, but refuses to set it up.
    """
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, _SIGKILL)
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")  # if memory runs out, this first
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _MAX_FILES)
    with suppress(OSError, ValueError):  # macOS knows no limit of memory
        _limit(resource.RLIMIT_AS, _size() + memory)
    if sys.platform == "linux":
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _restrict_files(files, folders)
        _restrict_calls()


def _limit(kind: int, value: int) -> None:
    resource.setrlimit(kind, (value, value))


def _size() -> int:
    """Return the bytes of address space that this process has."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return 0


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, *(ctypes.c_ulong(each) for each in (value, 0, 0, 0))):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _syscall(number: int, *values: object) -> int:
    result = int(_libc.syscall(number, *values))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"system call {number}")
    return result


def _landlock_version() -> int:
    if sys.platform != "linux":
        return 0
    try:
        return _syscall(_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(1))
    except OSError:
        return 0


def _seccomp_is_there() -> bool:
    there = Path("/proc/sys/kernel/seccomp/actions_avail").is_file()
    return there and platform.machine() in _FORBIDDEN


def code_folders() -> list[Path]:
    """Return the folders that programs and libraries are loaded from."""
    names = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    own = Path(__file__).resolve().parent.parent
    folders = {own, Path("/lib"), Path("/lib64"), Path("/usr/lib"), Path("/usr/lib64")}
    folders |= {Path(name) for name in names} | {Path(sys.base_prefix) / "lib"}
    return [path for path in folders if path.is_dir()] + [Path("/etc/ld.so.cache")]


def _restrict_files(files: Iterable[Path], folders: Iterable[Path]) -> None:
    version = _landlock_version()
    if not version:
        return
    attributes = struct.pack(
        "QQQ",
        (1 << _FILE_RIGHTS.get(version, 16)) - 1,
        _NET_RIGHTS if version >= 4 else 0,
        _SCOPES if version >= 6 else 0,
    )[: 24 if version >= 6 else 16 if version >= 4 else 8]
    ruleset = _syscall(
        _LANDLOCK_CREATE_RULESET,
        attributes,
        ctypes.c_size_t(len(attributes)),
        ctypes.c_uint32(0),
    )
    whole = [
        (path, _READ_FILE | (_READ_DIR if path.is_dir() else 0))
        for path in [*code_folders(), *files]
    ]
    for path, rights in whole + [(path, _READ_DIR) for path in folders]:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        rule = struct.pack("=Qi", rights, place)
        _syscall(_LANDLOCK_ADD_RULE, ruleset, ctypes.c_int(1), rule, ctypes.c_uint32(0))
        os.close(place)
    _syscall(_LANDLOCK_RESTRICT_SELF, ruleset, ctypes.c_uint32(0))
    os.close(ruleset)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERROR, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def _restrict_calls() -> None:
    """Forbid system calls; a forbidden one fails with EPERM."""
    if not _seccomp_is_there():
        return
    machine, numbers = _FORBIDDEN[platform.machine()]
    calls = {name: number for name, number in numbers.items() if name not in {"clone", "clone3"}}

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("HBBI", code, then, otherwise, value)

    program = [
        step(_LOAD, 4),  # the machine
        step(_EQUAL, machine, 1),
        step(_RETURN, _KILL),
        step(_LOAD, 0),  # the number of the call
        step(_AT_LEAST, 0x40000000, 0, 1),  # the calls of x32 have other numbers
        step(_RETURN, _ERROR | _EPERM),
        step(_EQUAL, numbers["clone3"], 0, 1),  # glibc then takes clone, whose flags can be read
        step(_RETURN, _ERROR | _ENOSYS),
    ]
    for number in calls.values():
        program += [step(_EQUAL, number, 0, 1), step(_RETURN, _ERROR | _EPERM)]
    program += [
        step(_EQUAL, numbers["clone"], 0, 3),
        step(_LOAD, 16),  # the flags
        step(_ANY_BIT, _THREAD, 1),
        step(_RETURN, _ERROR | _EPERM),
        step(_RETURN, _ALLOW),
    ]
    code = b"".join(program)
    pointer = ctypes.byref(_Program(len(program), code))
    if _libc.prctl(_PR_SET_SECCOMP, 2, pointer, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl PR_SET_SECCOMP")
