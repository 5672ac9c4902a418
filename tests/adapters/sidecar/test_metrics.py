"""Metrics, traces and logs: what they tell, and that no text of a request is in them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from midstream.adapters.sidecar.addresses import TcpAddress
from midstream.adapters.sidecar.assembly import sidecar
from midstream.adapters.sidecar.logs import JsonLines, configure_logging, event, log_fault
from midstream.adapters.sidecar.metrics import Metrics
from midstream.adapters.sidecar.pool import Pool
from midstream.adapters.sidecar.server import Sidecar
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.adapters.sidecar.tracing import PHASE_SPANS, Tracing
from midstream.proto.v1 import decoding_pb2, models_pb2, strategy_pb2
from midstream.proto.v1.decoding_pb2_grpc import DecodingStub
from midstream.proto.v1.models_pb2_grpc import ModelsStub

SECRET = "zanzibar"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
PARENT_ID = "b7ad6b7169203331"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def _samples(text: str) -> Samples:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def _read(server: Sidecar) -> str:
    def get() -> str:
        url = f"http://{server.metrics_address}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text: str = answer.read().decode()
            return text

    return await asyncio.to_thread(get)


def _request(particles: int) -> decoding_pb2.GenerateRequest:
    strategy = strategy_pb2.Strategy(
        constraint=strategy_pb2.Constraint(regex=f"({SECRET}|[a-z]+)"),
        sampler=strategy_pb2.Sampler(awrs=strategy_pb2.Awrs(rejects=100)),
        smc=strategy_pb2.Smc(particles=particles),
        limits=strategy_pb2.Limits(max_new_tokens=4),
    )
    return decoding_pb2.GenerateRequest(text=f"{SECRET}: ", strategy=strategy)


class Collector:
    """An OTLP collector on loopback."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def spans(self) -> list[Span]:
        """All spans that came."""
        return [
            span
            for body in self.bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


def test_a_generation_is_counted_and_traced_without_its_text(
    in_loop: Callable[..., Any],
    channel_to: Any,
    collector: Collector,
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts: list[str] = []

    async def scenario() -> None:
        settings = ServerSettings(
            listen=None, unix=True, metrics=TcpAddress("127.0.0.1", 0), traces=collector.endpoint
        )
        server = sidecar(settings, {"embedded": "embedded"})
        await server.start()
        try:
            async with channel_to(server) as channel:
                context = (("traceparent", f"00-{TRACE_ID}-{PARENT_ID}-01"),)
                generate = DecodingStub(channel).GenerateOnce
                await generate(_request(4), metadata=context)
                await ModelsStub(channel).Get(models_pb2.GetModelRequest())
                texts.append(await _read(server))
        finally:
            await server.drain(0.0)

    with caplog.at_level(logging.INFO, "midstream.sidecar"):
        in_loop(scenario())
    _check_metrics(_samples(texts[0]))
    _check_spans(collector.spans())
    formatter = JsonLines()
    logged = "\n".join(formatter.format(record) for record in caplog.records)
    assert "GenerateOnce" in logged
    for told in (texts[0], logged, *(body.decode("latin-1") for body in collector.bodies)):
        assert SECRET not in told


def _check_metrics(samples: Samples) -> None:
    decoding = ("service", "decoding")
    method = ("method", "/midstream.v1.Decoding/GenerateOnce")
    assert samples["midstream_requests_total", (("code", "OK"), method)] == 1
    assert samples["midstream_requests_running", (method,)] == 0
    assert samples["midstream_request_seconds_count", (method,)] == 1
    draws = samples["midstream_checks_per_draw_count", (decoding,)]
    assert draws == sum(v for (name, _), v in samples.items() if name == "midstream_draws_total")
    assert 4 <= draws <= 16
    tokens = samples["midstream_tokens_total", (decoding,)]
    dead = sum(v for (name, _), v in samples.items() if name == "midstream_dead_particles_total")
    assert tokens + dead == draws
    assert samples["midstream_checks_per_draw_sum", (decoding,)] >= draws
    assert 1 <= samples["midstream_effective_sample_share_count", (decoding,)] <= 4
    for phase in ("compile", "forward", "draw"):
        assert samples["midstream_step_seconds_count", (("phase", phase), decoding)] >= 1
    for pool in ("compile", "draw"):
        assert samples["midstream_queue_depth", (("pool", pool),)] == 0
    assert samples["process_open_fds", ()] > 0
    assert samples["process_resident_memory_bytes", ()] > 0


def _check_spans(spans: list[Span]) -> None:
    by_name = {span.name: span for span in spans}
    call = by_name["midstream.v1.Decoding/GenerateOnce"]
    assert call.trace_id.hex() == TRACE_ID
    assert call.parent_span_id.hex() == PARENT_ID
    attributes = {pair.key: pair.value for pair in call.attributes}
    assert attributes["rpc.method"].string_value == "GenerateOnce"
    assert attributes["midstream.draw.count"].int_value >= 1
    assert attributes["midstream.draw.seconds"].double_value > 0
    for phase in ("compile", "forward", "draw"):
        assert by_name[phase].parent_span_id == call.span_id
        assert by_name[phase].trace_id == call.trace_id
    other = by_name["midstream.v1.Models/Get"]
    assert other.trace_id != call.trace_id


def test_refused_calls_are_counted_by_their_code(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    texts: list[str] = []

    async def scenario() -> None:
        metrics = TcpAddress("127.0.0.1", 0)
        async with (
            serve(fake.services, metrics=metrics) as server,
            channel_to(server) as channel,
        ):
            get = ModelsStub(channel).Get
            for name in ("input", "input", "fault", "x"):
                await asyncio.gather(
                    get(models_pb2.GetModelRequest(model=name)), return_exceptions=True
                )
            call = get(models_pb2.GetModelRequest(model="hang"))
            while len(fake.calls) < 5:
                await asyncio.sleep(0.005)
            texts.append(await _read(server))
            call.cancel()
            while server.running:
                await asyncio.sleep(0.005)
            texts.append(await _read(server))

    in_loop(scenario())
    method = ("method", "/midstream.v1.Models/Get")
    during, after = (_samples(text) for text in texts)
    assert during["midstream_requests_running", (method,)] == 1
    assert after["midstream_requests_running", (method,)] == 0
    for code, count in (("INVALID_ARGUMENT", 2), ("INTERNAL", 1), ("OK", 1), ("CANCELLED", 1)):
        assert after["midstream_requests_total", (("code", code), method)] == count
    assert "SECRET" not in "".join(texts)


def test_the_queue_is_what_waits_for_a_thread(in_loop: Callable[..., Any]) -> None:
    release = threading.Event()
    metrics = Metrics()

    def depth() -> float | None:
        return metrics.registry.get_sample_value("midstream_queue_depth", {"pool": "draw"})

    async def scenario() -> None:
        pool = Pool("draw", 2, metrics)
        work = [asyncio.create_task(pool.run(release.wait, 30)) for _ in range(5)]
        await asyncio.sleep(0)
        assert depth() == 3
        work[4].cancel()
        await asyncio.sleep(0)
        assert depth() == 2
        release.set()
        assert await asyncio.gather(*work[:4]) == [True] * 4
        assert depth() == 0
        pool.close()

    in_loop(scenario())


def test_a_long_call_has_few_spans_and_all_its_phases(
    in_loop: Callable[..., Any], collector: Collector
) -> None:
    from midstream.adapters.sidecar.tracing import otlp_exporter

    tracing = Tracing(otlp_exporter(collector.endpoint))
    with tracing.call("/a.B/C", {}):
        for _ in range(1000):
            with tracing.phase("draw"):
                pass
    with tracing.phase("draw"):
        pass
    tracing.close()
    spans = collector.spans()
    assert [span.name for span in spans] == ["draw"] * PHASE_SPANS + ["a.B/C"]
    counts = {pair.key: pair.value.int_value for pair in spans[-1].attributes}
    assert counts["midstream.draw.count"] == 1000


def test_a_collector_that_is_not_there_stops_nothing(
    serve: Any, fake: Any, in_loop: Callable[..., Any], channel_to: Any
) -> None:
    async def scenario() -> None:
        nowhere = "http://127.0.0.1:9/v1/traces"
        async with serve(fake.services, traces=nowhere) as server, channel_to(server) as channel:
            answer = await ModelsStub(channel).Get(models_pb2.GetModelRequest(model="x"))
            assert answer.model == "x"

    in_loop(scenario())


def _lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Where the process logs to for a test."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.getLogger("midstream.sidecar").level
    found = io.StringIO()
    configure_logging("info", found)
    yield found
    logging.captureWarnings(False)
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    logging.getLogger("midstream.sidecar").setLevel(before[2])


def test_logs_are_json_lines_that_quote_nobody(stream: io.StringIO) -> None:
    event("listening", addresses=("127.0.0.1:1",))
    event("quiet", logging.DEBUG)
    foreign = logging.getLogger("some.library")
    foreign.info("not told")
    foreign.error("prompt was %s", SECRET)
    try:
        raise ValueError(SECRET)
    except ValueError as error:
        name = log_fault("/a.B/C", error)
        foreign.exception("while %s", SECRET)
    lines = _lines(stream)
    assert [line["level"] for line in lines] == ["info", "error", "error", "error"]
    assert lines[0]["event"] == "listening"
    assert lines[0]["addresses"] == ["127.0.0.1:1"]
    assert lines[1]["logger"] == "some.library"
    assert lines[1]["event"].startswith("test_metrics.py:")
    assert (lines[2]["id"], lines[2]["error"], lines[2]["method"]) == (name, "ValueError", "/a.B/C")
    assert lines[2]["places"][-1].endswith("test_logs_are_json_lines_that_quote_nobody")
    assert lines[3]["error"] == "ValueError"
    assert all(line["time"].endswith("Z") for line in lines)
    assert SECRET not in stream.getvalue()
