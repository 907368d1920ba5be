"""A network without a way out: this process and what it starts see only their own loopback.

Agent clients call home in ways that change with each version; a namespace shows that none of it
matters. Linux only. As root the way back is kept; other users stay inside until the process ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from agentsched.model import ConfigError

_CLONE_NEWUSER: Final = 0x10000000
_CLONE_NEWNET: Final = 0x40000000
_SIOCGIFFLAGS: Final = 0x8913
_SIOCSIFFLAGS: Final = 0x8914
_IFF_UP: Final = 0x1
_REQUEST: Final = "16sH14x"


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Cut the calling thread, and all that it starts from now on, off from every network.

    Raises:
        ConfigError: the system does not allow it.
    """
    if sys.platform != "linux":
        raise ConfigError("network namespaces exist on Linux only")
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    try:
        is_root = os.geteuid() == 0
        _leave(is_root=is_root)
        _raise_loopback()
        assert [name for _, name in socket.if_nameindex()] == ["lo"]
        try:
            yield
        finally:
            if is_root:
                _call("setns", before, _CLONE_NEWNET)
    finally:
        os.close(before)


def _leave(*, is_root: bool) -> None:
    """Enter a new network namespace; users without rights get them in a namespace of their own."""
    if is_root:
        _call("unshare", _CLONE_NEWNET)
        return
    user, group = os.geteuid(), os.getegid()
    _call("unshare", _CLONE_NEWUSER | _CLONE_NEWNET)
    me = Path("/proc/self")
    (me / "setgroups").write_text("deny")
    (me / "uid_map").write_text(f"{user} {user} 1")
    (me / "gid_map").write_text(f"{group} {group} 1")


def _raise_loopback() -> None:
    """Set the interface `lo` up, which in a new namespace is down."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        request = struct.pack(_REQUEST, b"lo", 0)
        flags = struct.unpack(_REQUEST, fcntl.ioctl(control, _SIOCGIFFLAGS, request))[1]
        request = struct.pack(_REQUEST, b"lo", flags | _IFF_UP)
        try:
            fcntl.ioctl(control, _SIOCSIFFLAGS, request)
        except OSError as error:
            raise ConfigError(f"cannot set up loopback in a namespace: {error}") from error


def _call(name: str, *arguments: int) -> None:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    if function(*arguments) != 0:
        reason = os.strerror(ctypes.get_errno())
        raise ConfigError(f"cannot make a network namespace ({name}: {reason})")
