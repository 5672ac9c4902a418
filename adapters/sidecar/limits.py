"""Every bound of the server, in one place."""

from __future__ import annotations

from dataclasses import dataclass, fields

from midstream.middleware.errors import InputError

KIB = 1 << 10
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client may ask for. Every one is a number above 0.

    connections: at a time; more are closed at once.
    message_bytes: of one message, either way; a handshake with the largest tokenizer fits.
    streams: calls at a time, health checks excepted. client_streams: of one client, which is a
        certificate's subject or else an address.
    sequences: open at a time in one Process stream, forks among them.
    tokenizer_bytes: of a tokenizer.json, or of all tokens of a table.
    vocabulary: tokens. vocabularies: from clients, kept at a time.
    regions, region_bytes: shared memory of one stream.
    particles, max_new_tokens, prompt_tokens: of one request.
    prompt_bytes: of a prompt as text, before it is read.
    byte_texts, byte_text_bytes: texts of one request for byte laws, and bytes of each.
    beam_bytes, beam_width: of a text that a beam reads, a forward for each byte, and of the beam.
    rejects: most that a strategy may say, and what `auto` gets where it chooses awrs.
    handshake_seconds: in which a call must send its first message.
    idle_seconds: after which a Process stream in which nothing moves is closed.
    rows, cache_bytes: what all requests of a model have side by side, and memory for their keys and
        values (a quarter more is taken at times).
    engine_requests: runs over one server's engines at a time; others wait.
    workers, compile_workers: threads that draw, and threads that compile.
    """

    connections: int = 2048
    message_bytes: int = 36 * MIB
    streams: int = 256
    client_streams: int = 128
    sequences: int = 1024
    tokenizer_bytes: int = 32 * MIB
    vocabulary: int = 1 << 20
    vocabularies: int = 16
    regions: int = 8
    region_bytes: int = 1 << 30
    particles: int = 1024
    max_new_tokens: int = 4096
    prompt_tokens: int = 32_768
    prompt_bytes: int = 256 * KIB
    byte_texts: int = 64
    byte_text_bytes: int = 64 * KIB
    beam_bytes: int = KIB
    beam_width: int = 64
    rejects: int = 4096
    handshake_seconds: float = 5.0
    idle_seconds: float = 600.0
    rows: int = 1024
    cache_bytes: int = 4 << 30
    engine_requests: int = 32
    workers: int = 8
    compile_workers: int = 2

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise InputError(f"limits.{field.name}", value, "a number above 0")
