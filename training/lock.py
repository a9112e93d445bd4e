"""A run's folder belongs to one process at a time."""

import os
import socket
import time
from pathlib import Path

from utils import UserError

try:
    import fcntl
except ImportError:  # no such locks on Windows: there two runs of a name are not told apart
    fcntl = None

LOCK = "lock"  # a file in each folder of a run: who trains it, or did last


def take_folder(folder):
    """Takes a run's folder for this process and returns the file that holds it, for as long as it is open.

    UserError says who has it. A POSIX record lock: it ends with its process, however that ends, no child
    inherits it, and NFS knows it. The process that has it must not open the file again: closing any drops the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = open(folder / LOCK, "a+")
    for wait in (0.05, 0.05, None):  # lock_holder may be looking
        if try_lock(file, exclusive=True):
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}")
            file.flush()
            return file
        if wait:
            time.sleep(wait)
    raise UserError(
        f"{folder} is in use: {lock_holder(folder)} is training there; another run needs another --viz_name"
    )


def lock_holder(folder):
    """Which other process is training in a run's folder, as "pid 123 on host"; None if none is. Changes nothing."""
    try:
        with open(Path(folder) / LOCK) as file:
            return (
                None if try_lock(file, exclusive=False) else file.read() or "a process that has just started"
            )
    except FileNotFoundError:
        return None


def try_lock(file, exclusive):
    """Whether a lock can be had; True also where there are none."""
    try:
        if fcntl:
            fcntl.lockf(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, by system
        return False
    except OSError:  # a file system without locks
        pass
    return True
