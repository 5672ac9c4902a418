"""A server as a process: until it is told to end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.adapters.sidecar.assembly import sidecar
from midstream.adapters.sidecar.models import Source
from midstream.adapters.sidecar.server import Sidecar
from midstream.adapters.sidecar.settings import ServerSettings

Ready = Callable[[Sidecar], None]

ANY_HOST = ("0.0.0.0", "::")


def run(settings: ServerSettings, sources: Mapping[str, Source], on_ready: Ready) -> int:
    """Serve until SIGTERM or SIGINT, whose number it returns.

    A second signal ends it without the rest of the grace. on_ready: called once it is ready.
    Raises what `Sidecar.start` raises.
    """
    return asyncio.run(_serve(settings, sources, on_ready))


async def _serve(settings: ServerSettings, sources: Mapping[str, Source], on_ready: Ready) -> int:
    server = sidecar(settings, sources)
    told: list[int] = []
    ends: list[asyncio.Task[None]] = []

    def end(number: int) -> None:
        ends.append(asyncio.create_task(server.drain(0.0 if told else None)))
        told.append(number)

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, int(number))
    starting = asyncio.create_task(server.start())
    ended = asyncio.create_task(server.wait())
    await asyncio.wait({starting, ended}, return_when=asyncio.FIRST_COMPLETED)
    if told:
        starting.cancel()
    else:
        await starting
        on_ready(server)
    await ended
    await asyncio.gather(*ends)
    return told[0]


def client_line(server: Sidecar, token_file: Path | None) -> str:
    """The line of Python with which a client on this machine begins.

    A client's own certificate and key are told as CERTIFICATE and KEY: the server knows neither.
    """
    settings = server.settings
    target, names, options = server.addresses[0], ["Client"], []
    if settings.listen is not None and settings.listen.host in ANY_HOST:
        port = TcpAddress.parse(target, "listen").port
        target = str(TcpAddress(socket.gethostname(), port))
    if settings.listen is not None and settings.tls is not None:
        names.append("ClientTls")
        own = ", CERTIFICATE, KEY" if settings.tls.client_ca is not None else ""
        options.append(f", tls=ClientTls({_path(settings.tls.certificate)}{own})")
    if token_file is not None:
        options.append(f", token={_path(token_file)}.read_text().strip()")
    paths = "from pathlib import Path; " if options else ""
    imports = f"from midstream.adapters.sidecar.client import {', '.join(names)}"
    return f'{paths}{imports}; client = Client("{target}"{"".join(options)})'


def _path(path: Path) -> str:
    return f"Path({str(path.absolute())!r})"
