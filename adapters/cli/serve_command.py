"""`midstream serve`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from midstream.middleware.errors import InputError

NEEDED = "the packages of the extra: pip install 'midstream[sidecar]'"

EXAMPLES = "\n\n".join(
    (
        "[bold]Examples[/bold]",
        "midstream serve",
        "midstream serve --listen none --unix auto --allow-shared-memory",
        "midstream serve --model embedded --model sql=./my-model --metrics 127.0.0.1:9090",
        "midstream serve --vllm-url http://127.0.0.1:8000 --vllm-tokenizer ./my-model",
        "midstream serve --listen 0.0.0.0:50051 --tls-certificate cert.pem --tls-key key.pem "
        "--token-file token.txt",
        "Once it is ready it prints one line of Python, with which a client begins. The log goes "
        "to stderr, a JSON object a line. SIGTERM and Ctrl-C let running calls finish within the "
        "grace; a second one ends them.",
        "Exit codes: 0 ended by SIGTERM, 130 by Ctrl-C, 2 bad input, 1 any other fault.",
    )
)

_ADDRESSES = "Where it listens"
_ENGINE = "An engine to draw from"
_CALLERS = "Who may call (TCP; the Unix socket is the user's own)"
_WATCHING = "Who may watch"

ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        metavar="embedded|ALIAS=DIR|ALIAS=ORG/NAME",
        help="A model to serve under an alias; give it several times, the first is the default. "
        "By default the model that ships with midstream.",
    ),
]
VllmUrl = Annotated[
    str | None,
    typer.Option(
        "--vllm-url",
        metavar="URL",
        rich_help_panel=_ENGINE,
        help="Serve the model of a vLLM server, as http://127.0.0.1:8000, under the alias vllm; "
        "alone where there is no --model.",
    ),
]
VllmTokenizer = Annotated[
    str | None,
    typer.Option(
        "--vllm-tokenizer",
        metavar="DIR",
        rich_help_panel=_ENGINE,
        help="The folder of that model's tokenizer.",
    ),
]
VllmKeyFile = Annotated[
    Path | None,
    typer.Option(
        "--vllm-key-file",
        metavar="FILE",
        rich_help_panel=_ENGINE,
        help="What the vLLM server was given as --api-key.",
    ),
]
Listen = Annotated[
    str,
    typer.Option(
        "--listen",
        metavar="HOST:PORT|none",
        rich_help_panel=_ADDRESSES,
        help="TCP. Port 0: any that is free. Off loopback it needs TLS, and a token or client "
        "certificates.",
    ),
]
Unix = Annotated[
    str | None,
    typer.Option(
        "--unix",
        metavar="PATH|auto",
        rich_help_panel=_ADDRESSES,
        help="A Unix socket, in a folder that is made with mode 0700; auto: in a new temporary "
        "folder. The fastest way for an engine on this machine.",
    ),
]
SharedMemory = Annotated[
    bool,
    typer.Option(
        "--allow-shared-memory",
        rich_help_panel=_ADDRESSES,
        help="Let clients on the Unix socket pass logits in files of /dev/shm.",
    ),
]
TlsCertificate = Annotated[
    Path | None,
    typer.Option(
        "--tls-certificate", metavar="PEM", rich_help_panel=_CALLERS, help="The server's."
    ),
]
TlsKey = Annotated[
    Path | None,
    typer.Option("--tls-key", metavar="PEM", rich_help_panel=_CALLERS, help="Its key."),
]
TlsClientCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-client-ca",
        metavar="PEM",
        rich_help_panel=_CALLERS,
        help="Mutual TLS: clients need a certificate of this authority.",
    ),
]
TokenFile = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        rich_help_panel=_CALLERS,
        help="Calls need `authorization: Bearer TOKEN`, health checks excepted. "
        "`openssl rand -hex 32 > FILE` makes one.",
    ),
]
MetricsOption = Annotated[
    str | None,
    typer.Option(
        "--metrics",
        metavar="HOST:PORT",
        rich_help_panel=_WATCHING,
        help="Prometheus metrics, over HTTP on a port of their own.",
    ),
]
PublicMetrics = Annotated[
    bool,
    typer.Option(
        "--public-metrics", rich_help_panel=_WATCHING, help="Let --metrics be off loopback."
    ),
]
ReflectionOption = Annotated[
    bool,
    typer.Option(
        "--reflection", rich_help_panel=_WATCHING, help="Tell callers which services there are."
    ),
]
PublicReflection = Annotated[
    bool,
    typer.Option(
        "--public-reflection", rich_help_panel=_WATCHING, help="Let --reflection be off loopback."
    ),
]
Traces = Annotated[
    str | None,
    typer.Option(
        "--traces",
        metavar="URL",
        envvar="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
        rich_help_panel=_WATCHING,
        help="OpenTelemetry traces, to OTLP over HTTP, as http://127.0.0.1:4318/v1/traces.",
    ),
]
LogLevel = Annotated[
    str,
    typer.Option(
        "--log-level",
        metavar="debug|info|warning|error",
        rich_help_panel=_WATCHING,
        help="From info on each call is a line. No text of a request is logged.",
    ),
]
Grace = Annotated[
    float,
    typer.Option("--grace", metavar="SECONDS", help="Time for running calls at the end."),
]
LimitOption = Annotated[
    list[str] | None,
    typer.Option(
        "--limit",
        metavar="NAME=NUMBER",
        help="Set a bound; give it several times. `--limit list` prints all with their values.",
    ),
]


def serve(
    model: ModelOption = None,
    vllm_url: VllmUrl = None,
    vllm_tokenizer: VllmTokenizer = None,
    vllm_key_file: VllmKeyFile = None,
    listen: Listen = "127.0.0.1:50051",
    unix: Unix = None,
    allow_shared_memory: SharedMemory = False,
    tls_certificate: TlsCertificate = None,
    tls_key: TlsKey = None,
    tls_client_ca: TlsClientCa = None,
    token_file: TokenFile = None,
    metrics: MetricsOption = None,
    public_metrics: PublicMetrics = False,
    reflection: ReflectionOption = False,
    public_reflection: PublicReflection = False,
    traces: Traces = None,
    log_level: LogLevel = "info",
    grace: Grace = 30.0,
    limit: LimitOption = None,
) -> int:
    """Serve decoding strategies to engines and services in any language, over gRPC."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's own lines are no JSON
    try:
        from midstream.adapters.cli import serving
    except ImportError as error:
        raise InputError("serve", f"no package {error.name}", NEEDED) from None
    if limit == ["list"]:
        typer.echo(serving.limits_page())
        return 0
    return serving.serve(
        serving.Given(
            models=model or ([] if vllm_url else ["embedded"]),
            vllm=(vllm_url, vllm_tokenizer, vllm_key_file),
            listen=listen,
            unix=unix,
            allow_shared_memory=allow_shared_memory,
            tls=(tls_certificate, tls_key, tls_client_ca),
            token_file=token_file,
            metrics=metrics,
            public_metrics=public_metrics,
            reflection=reflection,
            public_reflection=public_reflection,
            traces=traces,
            log_level=log_level,
            grace_seconds=grace,
            limits=limit or [],
        )
    )
