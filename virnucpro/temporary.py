"""Names of temporary files: which process writes under one, and whether that process is gone.

A name is ``.{target}.{process space}.{process}.{random}.tmp``. The process space says where the
process number means one process, so that a shared folder can be swept on any machine.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import socket
import time
from pathlib import Path

__all__ = ["in_use", "is_abandoned", "is_temporary", "temporary_name"]

in_use: set[str] = set()
"""The temporary names that this process writes under."""

_TARGET_BYTES = 100  # of the target's name in a temporary one, which must stay below 255
_ABANDONED_AFTER = 24 * 3600.0  # seconds unchanged, for a writer on another machine
# A library may have added a suffix of its own.
_NAME = re.compile(r"\..*\.([0-9a-f]{8})\.(\d+)\.[0-9a-f]{8}\.tmp(\..+)?")


def temporary_name(target: Path) -> str:
    """Return a name for `target`'s folder that no other writer has."""
    stem = os.fsdecode(os.fsencode(target.name)[:_TARGET_BYTES])
    return f".{stem}.{_process_space()}.{os.getpid()}.{secrets.token_hex(4)}.tmp"


def is_temporary(name: str) -> bool:
    """Tell whether a name is one of `temporary_name`."""
    return _NAME.fullmatch(name) is not None


def is_abandoned(path: Path) -> bool:
    """Tell whether a file has a temporary name and the process that made it is gone."""
    match = _NAME.fullmatch(path.name)
    if match is None or path.name in in_use:
        return False
    if match[1] == _process_space():
        return int(match[2]) == os.getpid() or not _is_alive(int(match[2]))
    try:  # a process of another machine cannot be asked, but it would have gone on writing
        return time.time() - path.stat().st_mtime > _ABANDONED_AFTER
    except OSError:
        return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        return True
    return True


@functools.cache
def _process_space() -> str:
    """Name where a process number means one process: this boot of this machine or container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii")
        where = boot + str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        where = socket.gethostname()
    return hashlib.sha256(where.encode()).hexdigest()[:8]
