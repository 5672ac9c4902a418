"""What a server refuses to be, and why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from midstream.adapters.sidecar.addresses import TcpAddress, UnixSocket
from midstream.adapters.sidecar.credentials import Tls, Token
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.middleware.errors import InputError

PUBLIC = TcpAddress("0.0.0.0", 50051)
TLS = Tls(Path("certificate.pem"), Path("key.pem"))
MUTUAL = Tls(Path("certificate.pem"), Path("key.pem"), Path("ca.pem"))
TOKEN = Token("0123456789abcdef")


def test_by_default_only_this_machine_can_call() -> None:
    settings = ServerSettings()
    assert str(settings.listen) == "127.0.0.1:50051"
    assert not settings.is_public
    assert not settings.allow_shared_memory and not settings.reflection
    assert settings.metrics is None and settings.traces is None


@pytest.mark.parametrize(
    ("fields", "argument", "teaches"),
    [
        ({"listen": PUBLIC}, "listen", "--tls-certificate"),
        ({"listen": PUBLIC, "tls": TLS}, "listen", "--token-file"),
        ({"listen": PUBLIC, "token": TOKEN}, "token", "readable by all"),
        (
            {"listen": PUBLIC, "tls": TLS, "token": TOKEN, "reflection": True},
            "reflection",
            "--public-reflection",
        ),
        ({"metrics": TcpAddress("0.0.0.0", 9090)}, "metrics", "--public-metrics"),
        ({"listen": None}, "listen", "a Unix socket"),
        ({"unix_path": Path("socket")}, "unix_path", "unix=True"),
        ({"grace_seconds": -1.0}, "grace_seconds", "0 or above"),
        ({"grace_seconds": float("nan")}, "grace_seconds", "0 or above"),
    ],
)
def test_what_would_be_open_to_others_is_refused(
    fields: dict[str, Any], argument: str, teaches: str
) -> None:
    with pytest.raises(InputError) as caught:
        ServerSettings(**fields)
    assert caught.value.argument == argument
    assert teaches in caught.value.accepted


@pytest.mark.parametrize(
    "fields",
    [
        {"listen": PUBLIC, "tls": TLS, "token": TOKEN},
        {"listen": PUBLIC, "tls": MUTUAL},
        {"listen": PUBLIC, "tls": MUTUAL, "reflection": True, "public_reflection": True},
        {"token": TOKEN},
        {"reflection": True},
        {"metrics": TcpAddress("127.0.0.1", 9090)},
        {"metrics": TcpAddress("0.0.0.0", 9090), "public_metrics": True},
        {"listen": None, "unix": True},
    ],
)
def test_what_is_safe_is_not(fields: dict[str, Any]) -> None:
    ServerSettings(**fields)


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051, True),
        ("127.8.0.1:0", "127.8.0.1", 0, True),
        ("localhost:1", "localhost", 1, True),
        ("[::1]:50051", "::1", 50051, True),
        ("[::]:50051", "::", 50051, False),
        ("0.0.0.0:50051", "0.0.0.0", 50051, False),
        ("10.0.0.7:65535", "10.0.0.7", 65535, False),
        ("localhost.example:1", "localhost.example", 1, False),
        ("127.0.0.1.example:1", "127.0.0.1.example", 1, False),
        ("[::ffff:10.0.0.7]:1", "::ffff:10.0.0.7", 1, False),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool) -> None:
    address = TcpAddress.parse(text, "--listen")
    assert (address.host, address.port, address.is_loopback) == (host, port, loopback)
    assert str(address) == text


@pytest.mark.parametrize(
    "text",
    ["", "50051", ":50051", "host", "host:", "host:x", "host:65536", "::1:5", "[h]:1", "h:-1"],
)
def test_what_is_no_address_is_told_by_example(text: str) -> None:
    with pytest.raises(InputError, match=r"as 127\.0\.0\.1:50051") as caught:
        TcpAddress.parse(text, "--listen")
    assert caught.value.argument == "--listen"


def test_a_socket_gets_a_folder_of_its_own(tmp_path: Path) -> None:
    for path in (None, tmp_path / "new" / "socket"):
        socket = UnixSocket(path)
        assert socket.path.parent.stat().st_mode & 0o7777 == 0o700
        assert socket.target == f"unix:{socket.path}"
        socket.close()
        assert not socket.path.parent.exists()


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir(mode=0o700)
    UnixSocket(folder / "socket").close()
    assert folder.is_dir() and not any(folder.iterdir())


@pytest.mark.parametrize("mode", [0o755, 0o770, 0o701])
def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(InputError, match=r"mode 0700") as caught:
        UnixSocket(folder / "socket")
    assert caught.value.argument == "unix"


def test_a_link_to_a_private_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "private")
    with pytest.raises(InputError, match="mode 0700"):
        UnixSocket(tmp_path / "link" / "socket")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives a folder away")
def test_the_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(InputError, match="user 12345"):
        UnixSocket(folder / "socket")


def test_a_path_that_the_kernel_would_cut_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="at most 107 bytes"):
        UnixSocket(tmp_path / "x" / ("s" * 120))


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        UnixSocket(tmp_path / "a" / "b" / "socket")


def test_two_servers_do_not_share_a_path(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "socket"
    first = UnixSocket(path)
    with pytest.raises(InputError, match="no other server"):
        UnixSocket(path)
    first.close()
    UnixSocket(path).close()


@pytest.mark.parametrize("text", ["", "short", "0123456789abcde", "0123456789\nabcdef", "é" * 20])
def test_a_weak_token_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InputError, match="openssl rand") as caught:
        Token(text)
    assert not text or text not in str(caught.value)


def test_a_token_comes_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(" 0123456789abcdef\n")
    token = Token.load(path)
    assert token.fits({"authorization": "Bearer 0123456789abcdef"})
    with pytest.raises(InputError, match="No such file"):
        Token.load(tmp_path / "none")
    path.write_bytes(b"\xff" * 20)
    with pytest.raises(InputError, match="no text"):
        Token.load(path)


def test_limits_are_above_0() -> None:
    assert Limits().streams == 256
    for value in (0, -1, float("nan")):
        with pytest.raises(InputError, match=r"^limits\.streams: "):
            Limits(streams=value)  # type: ignore[arg-type]
