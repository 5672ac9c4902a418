"""The server that the demonstration calls: a sidecar on a Unix socket in a private folder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from midstream.adapters.demo.sampling import REJECTS
from midstream.adapters.sidecar.assembly import sidecar
from midstream.adapters.sidecar.client import Client
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.models import EMBEDDED
from midstream.adapters.sidecar.server import Sidecar
from midstream.adapters.sidecar.settings import ServerSettings


@contextmanager
def sidecar_client() -> Iterator[Client]:
    """A client of a server with the embedded model, which ends with the context.

    The server has a thread and an event loop of its own. Raises what `Sidecar.start` raises.
    """
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        thread = threading.Thread(target=loop.run_forever, name="midstream-demo", daemon=True)
        thread.start()
        try:
            server = asyncio.run_coroutine_threadsafe(_started(), loop).result()
            try:
                with Client(server.addresses[0]) as client:
                    yield client
            finally:
                asyncio.run_coroutine_threadsafe(server.drain(0.0), loop).result()
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()


async def _started() -> Sidecar:
    """A server that is ready. Made in its loop, to which it belongs."""
    settings = ServerSettings(listen=None, unix=True, limits=Limits(rejects=REJECTS))
    server = sidecar(settings, {EMBEDDED: EMBEDDED})
    await server.start()
    return server
