"""What `midstream serve` does, apart from its options."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import typer

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.adapters.sidecar.credentials import Tls, Token
from midstream.adapters.sidecar.engines import EngineAddress
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.logs import LEVELS, configure_logging
from midstream.adapters.sidecar.models import ENGINE, Source, sources_of
from midstream.adapters.sidecar.process import client_line, run
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.middleware.errors import InputError

INTERRUPTED = 130

OPTIONS = {
    "token": "--token-file",
    "unix_path": "--unix",
    "grace_seconds": "--grace",
    "models": "--model",
    "alias": "--model",
}
"""Arguments that are not called as their options are."""


@dataclass(frozen=True, slots=True)
class Given:
    """The options of `midstream serve` as they were given.

    tls: certificate, key and the authority of clients. vllm: URL, tokenizer and key file.
    """

    models: Sequence[str]
    vllm: tuple[str | None, str | None, Path | None]
    listen: str
    unix: str | None
    allow_shared_memory: bool
    tls: tuple[Path | None, Path | None, Path | None]
    token_file: Path | None
    metrics: str | None
    public_metrics: bool
    reflection: bool
    public_reflection: bool
    traces: str | None
    log_level: str
    grace_seconds: float
    limits: Sequence[str]


def serve(given: Given) -> int:
    """Serve until told to end; the exit code. Raises InputError that names the option."""
    if given.log_level not in LEVELS:
        raise InputError("--log-level", given.log_level, "one of " + ", ".join(LEVELS))
    try:
        settings = _settings(given)
        sources = _sources(given)
        configure_logging(given.log_level)
        number = run(
            settings,
            sources,
            lambda server: typer.echo(client_line(server, given.token_file)),
        )
    except InputError as error:
        raise _naming_the_option(error) from None
    return INTERRUPTED if number == signal.SIGINT else 0


def _sources(given: Given) -> dict[str, Source]:
    sources: dict[str, Source] = {**sources_of(given.models)}
    url, tokenizer, key_file = given.vllm
    if url is None and tokenizer is None and key_file is None:
        return sources
    if url is None or tokenizer is None or not url.startswith(("http://", "https://")):
        accepted = "http://HOST:PORT or https://HOST:PORT, with --vllm-tokenizer"
        raise InputError("--vllm-url", url or "none", accepted)
    if ENGINE in sources:
        raise InputError("--model", ENGINE, "an alias other than that of --vllm-url")
    key = None
    if key_file is not None:
        try:
            key = key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise InputError("--vllm-key-file", str(key_file), "a file with the key") from None
    sources[ENGINE] = EngineAddress(url, tokenizer, key)
    return sources


def _settings(given: Given) -> ServerSettings:
    certificate, key, client_ca = given.tls
    tls = None
    if certificate is not None and key is not None:
        tls = Tls(certificate, key, client_ca)
    elif certificate is not None or key is not None or client_ca is not None:
        accepted = "--tls-certificate and --tls-key together, --tls-client-ca only with them"
        raise InputError("--tls-certificate", "one without the other", accepted)
    listen = None if given.listen == "none" else TcpAddress.parse(given.listen, "--listen")
    metrics = None if given.metrics is None else TcpAddress.parse(given.metrics, "--metrics")
    return ServerSettings(
        listen=listen,
        unix=given.unix is not None,
        unix_path=None if given.unix in (None, "auto") else Path(str(given.unix)),
        tls=tls,
        token=None if given.token_file is None else Token.load(given.token_file),
        allow_shared_memory=given.allow_shared_memory,
        metrics=metrics,
        public_metrics=given.public_metrics,
        reflection=given.reflection,
        public_reflection=given.public_reflection,
        traces=given.traces,
        grace_seconds=given.grace_seconds,
        limits=_limits(given.limits),
    )


def _limits(given: Sequence[str]) -> Limits:
    kinds = {name: type(value) for name, value in asdict(Limits()).items()}
    values: dict[str, float] = {}
    for text in given:
        name, _, number = text.partition("=")
        if name not in kinds:
            raise InputError("--limit", text, "NAME=NUMBER, with a name of `--limit list`")
        try:
            values[name] = kinds[name](number)
        except ValueError:
            kind = "a whole number" if kinds[name] is int else "a number"
            raise InputError("--limit", text, f"{name}={kind}") from None
    return Limits(**values)  # type: ignore[arg-type]


def limits_page() -> str:
    """Every bound with its default, a line each."""
    return "\n".join(f"{name}={value}" for name, value in asdict(Limits()).items())


def _naming_the_option(error: InputError) -> InputError:
    name = error.argument
    if name.startswith("limits."):
        option = f"--limit {name.removeprefix('limits.')}"
    elif name.startswith("--"):
        option = name
    else:
        option = OPTIONS.get(name, "--" + name.replace("_", "-"))
    return type(error)(option, error.got, error.accepted)
