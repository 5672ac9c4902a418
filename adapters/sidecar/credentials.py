"""Who may call: certificates, and a bearer token."""

from __future__ import annotations

import hmac
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import grpc

from midstream.middleware.errors import InputError

SHORTEST_TOKEN = 16
_SCHEME = "bearer "


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. client_ca: whose certificates a client must have; None: it needs none."""

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def server_credentials(self) -> grpc.ServerCredentials:
        """For a secure port. InputError where a file is not what it should be."""
        pair = (_read("tls_key", self.key), _read("tls_certificate", self.certificate))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            context.load_cert_chain(self.certificate, self.key)
        except OSError as error:
            got = f"{self.certificate} and {self.key} ({error.strerror or error})"
            accepted = "a certificate (PEM) and the key that belongs to it, without a password"
            raise InputError("tls_certificate", got, accepted) from None
        if self.client_ca is None:
            return grpc.ssl_server_credentials([pair])
        roots = _read("tls_client_ca", self.client_ca)
        try:
            context.load_verify_locations(self.client_ca)
        except OSError as error:
            got = f"{self.client_ca} ({error.strerror or error})"
            raise InputError("tls_client_ca", got, "certificates (PEM)") from None
        return grpc.ssl_server_credentials([pair], roots, require_client_auth=True)


def _read(argument: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        got = f"{path} ({error.strerror})"
        raise InputError(argument, got, "a PEM file that can be read") from None


class Token:
    """A bearer token that every call must carry, health checks excepted."""

    def __init__(self, secret: str) -> None:
        if len(secret) < SHORTEST_TOKEN or not (secret.isascii() and secret.isprintable()):
            got = f"{len(secret)} characters"  # never the secret itself
            accepted = (
                f"at least {SHORTEST_TOKEN} printable ASCII characters on one line, as "
                "`openssl rand -hex 32` gives"
            )
            raise InputError("token", got, accepted)
        self._secret = secret.encode()

    @classmethod
    def load(cls, path: Path) -> Token:
        """From a file; white space around it does not count."""
        try:
            return cls(path.read_text(encoding="utf-8").strip())
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no text"
            raise InputError("token", f"{path} ({reason})", "a file that can be read") from None

    def fits(self, metadata: Mapping[str, str]) -> bool:
        """Whether a call's metadata carries it; takes as long whichever characters differ."""
        header = metadata.get("authorization", "")
        given = header[len(_SCHEME) :] if header[: len(_SCHEME)].lower() == _SCHEME else ""
        return hmac.compare_digest(given.encode(), self._secret)
