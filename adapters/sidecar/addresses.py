"""Where the server listens: TCP, and a Unix socket in a folder of its own."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from midstream.middleware.errors import InputError

LONGEST_SOCKET_PATH = 107
"""Bytes that the kernel takes for the path of a Unix socket."""

_HOST_PORT = "host:port, as 127.0.0.1:50051, [::1]:50051, or 0.0.0.0:50051 with TLS; port 0: any"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host name or address, and a port; 0 for any that is free."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, argument: str) -> TcpAddress:
        """From `host:port`, an IPv6 address in brackets. InputError names the argument."""
        host, separator, port = text.rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        host = host[1:-1] if bracketed else host
        good = separator and host and bracketed == (":" in host)
        if not good or not (port.isascii() and port.isdigit() and int(port) < 1 << 16):
            raise InputError(argument, text, _HOST_PORT)
        return cls(host, int(port))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it. A name other than localhost may be anything."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class UnixSocket:
    """The path of a Unix socket that this process alone listens at.

    path: the socket's; its folder is made with mode 0700, or must be of this user alone. None: a
    new folder among the temporary ones.
    """

    def __init__(self, path: Path | None) -> None:
        if path is None:
            self.path = Path(tempfile.mkdtemp(prefix="midstream-")) / "socket"
            self._made = True
        else:
            self.path = path.absolute()
            self._made = _make_private(self.path.parent)
        if len(os.fsencode(self.path)) > LONGEST_SOCKET_PATH:
            accepted = f"a path of at most {LONGEST_SOCKET_PATH} bytes"
            raise InputError("unix", str(self.path), accepted)
        # gRPC takes over the path of a socket that another server listens at.
        self._lock = _locked(self.path)

    @property
    def target(self) -> str:
        """What a client gives to gRPC."""
        return f"unix:{self.path}"

    def close(self) -> None:
        """Take away the socket, and the folder if it was made here."""
        self.path.unlink(missing_ok=True)
        _lock_path(self.path).unlink(missing_ok=True)
        os.close(self._lock)
        if self._made and not any(self.path.parent.iterdir()):
            self.path.parent.rmdir()


def _make_private(folder: Path) -> bool:
    """Whether the folder had to be made. InputError where somebody else can enter it."""
    try:
        folder.mkdir(mode=0o700)
        return True
    except FileExistsError:
        status = os.lstat(folder)
    except OSError as error:
        got = f"{folder} ({error.strerror})"
        raise InputError("unix", got, "a path in a folder that can be made") from None
    private = stat.S_ISDIR(status.st_mode) and not status.st_mode & 0o077
    if not private or status.st_uid != os.geteuid():
        got = f"{folder} (mode {status.st_mode & 0o7777:04o}, user {status.st_uid})"
        accepted = "a socket in a folder of this user with mode 0700, or in one that is not there"
        raise InputError("unix", got, accepted)
    return False


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _locked(path: Path) -> int:
    """A lock beside the socket, which ends with the process however it ends."""
    descriptor = os.open(_lock_path(path), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        accepted = "a path that no other server listens at"
        raise InputError("unix", str(path), accepted) from None
    return descriptor
