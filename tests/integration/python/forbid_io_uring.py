"""Runs a program to which the kernel refuses io_uring, as container runtimes do.

forbid_io_uring.py PROGRAM ARGUMENT...: installs a seccomp filter that answers io_uring_setup with
EPERM, for this process and what it becomes, then executes the program.
"""

import ctypes
import errno
import os
import shutil
import struct
import sys

PR_SET_SECCOMP = 22
PR_SET_NO_NEW_PRIVS = 38
SECCOMP_MODE_FILTER = 2
SECCOMP_RET_ERRNO = 0x00050000
SECCOMP_RET_ALLOW = 0x7FFF0000
# The same number on every architecture.
IO_URING_SETUP = 425

# struct sock_filter { u16 code; u8 jt; u8 jf; u32 k; }
FILTER = b"".join(
    struct.pack("HBBI", *instruction)
    for instruction in (
        (0x20, 0, 0, 0),  # load the system call's number
        (0x15, 0, 1, IO_URING_SETUP),  # if equal, go on, else skip one
        (0x06, 0, 0, SECCOMP_RET_ERRNO | errno.EPERM),
        (0x06, 0, 0, SECCOMP_RET_ALLOW),
    )
)


class Program(ctypes.Structure):
    """struct sock_fprog"""

    _fields_ = [("len", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def main():
    libc = ctypes.CDLL(None, use_errno=True)
    program = Program(len(FILTER) // 8, FILTER)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        sys.exit("no_new_privs: " + os.strerror(ctypes.get_errno()))
    if libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        sys.exit("seccomp: " + os.strerror(ctypes.get_errno()))
    path = shutil.which(sys.argv[1]) or sys.argv[1]
    os.execv(path, sys.argv[1:])


main()
