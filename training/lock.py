"""A run's folder belongs to one process at a time."""

import errno
import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

from utils import UserError, atomic_file, regular

LOCK = "lock"  # the file that training locks in each folder of a run; lock.pid says which process has it
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}  # from file systems without locks


def file_lock(folder):
    """A lock that ends with its process, however that ends. It waits a moment: lock_holder may be looking."""
    path = Path(folder) / LOCK
    return FileLock(path, timeout=0.2, poll_interval=0.05, thread_local=False, fallback_to_soft=False)


def lock_run(folder):
    """Makes a run's folder and locks it for this process, until the lock that it returns is released or the process ends.

    UserError says who has it. Where the file system knows no locks, prints so in a line and returns None.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = file_lock(folder)
    try:
        lock.acquire()
    except Timeout:
        held = f"{folder} is in use: {holder_of(folder)} is training there"
        raise UserError(f"{held}; another run needs another --viz_name") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        print(f"{folder} is on a file system without locks: take care that no other process trains there")
        return None
    with atomic_file(folder / f"{LOCK}.pid") as file:
        file.write(f"pid {os.getpid()} on {socket.gethostname()}".encode())
    return lock


def lock_holder(folder):
    """Which process is training in a run's folder, as "pid 123 on host"; None if none is, or none can be told."""
    if not (Path(folder) / LOCK).exists():
        return None
    try:
        with file_lock(folder):
            return None
    except Timeout:
        return holder_of(folder)
    except OSError:
        return None


def holder_of(folder):
    try:
        return regular(Path(folder) / f"{LOCK}.pid").read_text()
    except OSError:
        return "a process that has just started"
