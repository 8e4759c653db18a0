"""Root obeys the permissions of files, as other users do."""

from __future__ import annotations

import ctypes
import os


def obey_permissions() -> None:
    """Drop the capabilities that let root ignore permissions, here and in children.

    Another user might not be able to read this Python.
    """
    if os.geteuid() != 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    sets = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable; twice 32 capabilities
    if libc.capget(header, sets):
        raise OSError(ctypes.get_errno(), "capget")
    dropped = (1, 2, 3)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER
    for capability in dropped:
        if libc.prctl(24, capability, 0, 0, 0):  # PR_CAPBSET_DROP
            raise OSError(ctypes.get_errno(), "prctl")
    for i in range(3):
        sets[i] &= ~sum(1 << capability for capability in dropped)
    if libc.capset(header, sets):
        raise OSError(ctypes.get_errno(), "capset")
