"""The typed clients, one that blocks and one for event loops, against real servers."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest

from midstream.adapters.embedded import embedded_model_path
from midstream.adapters.sidecar.assembly import sidecar
from midstream.adapters.sidecar.client import (
    AsyncClient,
    Client,
    ClientTls,
    Event,
    Outcome,
    ResamplingEvent,
    Retries,
    RowOfStep,
    SidecarError,
    StartedEvent,
    TokensEvent,
)
from midstream.adapters.sidecar.client.errors import input_error
from midstream.adapters.sidecar.client.requests import built_strategy
from midstream.adapters.sidecar.credentials import Token
from midstream.adapters.sidecar.groups import SequenceGroup
from midstream.adapters.sidecar.logits_processing_service import logits_processing
from midstream.adapters.sidecar.runtime import Service
from midstream.adapters.sidecar.sequences import RowOf
from midstream.adapters.sidecar.server import Sidecar
from midstream.adapters.sidecar.settings import ServerSettings
from midstream.adapters.sidecar.wire.errors import exhausted, refused, unavailable
from midstream.middleware.constraints import AllOf, Choice, Grammar, JsonSchema, Predicate, Regex
from midstream.middleware.errors import (
    ConstraintError,
    InputError,
    StrategyError,
    VocabularyError,
)
from midstream.middleware.law import PLAIN
from midstream.middleware.sampling import Auto
from midstream.middleware.smc import run
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary
from midstream.proto.v1 import decoding_pb2, decoding_pb2_grpc, models_pb2, models_pb2_grpc

VOCABULARY = Vocabulary([b"a", b"b", b"ab", b"ba", b"aab", b"", b""], eos_ids=[5, 6])
ROW = 9
REGEX = "(ab|ba)+"
LIMITS = {"max_new_tokens": 6}

Run = Callable[[Awaitable[Any]], Any]
Serve = Callable[..., AbstractAsyncContextManager[Sidecar]]


def logits_of(*tokens: int) -> np.ndarray:
    noise = np.random.default_rng([len(tokens), *tokens])
    return noise.normal(size=ROW, scale=2.0).astype(np.float32)


class TableRows:
    """Rows of a model that is `logits_of`."""

    def __init__(self, texts: list[tuple[int, ...]]) -> None:
        self.texts = texts
        self.logits = np.stack([logits_of(*tokens) for tokens in texts])

    def advance(self, parents: Any, tokens: Any) -> TableRows:
        grown = zip(parents, tokens, strict=True)
        return TableRows([(*self.texts[parent], token) for parent, token in grown])


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Where a server with the embedded model listens, in a thread of its own."""
    pytest.importorskip("transformers")
    begun: list[str] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()
    settings = ServerSettings(listen=None, unix=True, allow_shared_memory=True)

    async def serve() -> None:
        server = sidecar(settings, {"embedded": "embedded"})
        try:
            await server.start()
            begun.append(server.addresses[0])
        finally:
            ready.set()
        await end.wait()
        await server.drain(0.0)

    end = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    ready.wait(120)
    yield begun[0]
    loop.call_soon_threadsafe(end.set)
    thread.join(30)
    loop.close()


@pytest.fixture
def client(address: str) -> Iterator[Client]:
    with Client(address, timeout_seconds=60) as client:
        yield client


def alone(steps: int) -> list[Any]:
    """What a group answers in process, for the steps below."""
    group = SequenceGroup(
        Regex(REGEX).compile(VOCABULARY),
        answer="token",
        sampler=Auto(),
        law=PLAIN,
        seed=3,
        max_new_tokens=6,
        row_size=ROW,
        most=9,
    )
    answers = []
    for number in range(steps):
        rows = [RowOf(1, sequence=10), RowOf(2, sequence=11)]
        if number == 1:
            group.fork(1, 3, 12)
        if number > 0:
            rows.append(RowOf(3))
        answers.append(group.step(rows, np.stack([logits_of(number)] * len(rows))).rows)
    return answers


def rows_of_step(number: int) -> list[RowOfStep]:
    rows = [RowOfStep(1, sequence=10), RowOfStep(2, sequence=11)]
    return rows if number == 0 else [*rows, RowOfStep(3)]


def same(remote: Any, local: Any) -> bool:
    told = dataclasses.asdict(remote)
    return all(told[name] == getattr(local, name) for name in told)


STRATEGY = {"constraint": {"regex": REGEX}, "seed": 3, "limits": LIMITS}


@pytest.mark.parametrize("shared_rows", [0, 3])
def test_sequences_are_those_of_the_group_in_process(client: Client, shared_rows: int) -> None:
    with client.process(VOCABULARY, ROW, strategy=STRATEGY, shared_rows=shared_rows) as stream:
        assert stream.ready.sampler == "mask"
        assert stream.ready.vocabulary_fingerprint == VOCABULARY.fingerprint
        for number, expected in enumerate(alone(3)):
            if number == 1:
                stream.fork(1, 3, 12)
            rows = rows_of_step(number)
            result = stream.step(np.stack([logits_of(number)] * len(rows)), rows)
            assert result.masks is None and result.logits is None
            assert all(map(same, result.rows, expected))
        stream.close(3)
        with pytest.raises(InputError) as raised:
            stream.close(3)
            stream.step(np.stack([logits_of()]), [RowOfStep(1)])
        assert raised.value.argument == "close.id"


def test_the_awaited_stream_gives_the_same(address: str, in_loop: Run) -> None:
    async def remote() -> list[Any]:
        answers = []
        async with AsyncClient(address) as client:
            options: Any = {"constraint": Regex(REGEX), "strategy": {"seed": 3, "limits": LIMITS}}
            async with client.process(VOCABULARY, ROW, **options) as stream:
                for number in range(3):
                    if number == 1:
                        await stream.fork(1, 3, 12)
                    rows = rows_of_step(number)
                    logits = np.stack([logits_of(number)] * len(rows))
                    answers.append((await stream.step(logits, rows)).rows)
                await stream.close(2)
                with pytest.raises(InputError):
                    await stream.step(None, [RowOfStep(1)])
        return answers

    for remote_rows, expected in zip(in_loop(remote()), alone(3), strict=True):
        assert all(map(same, remote_rows, expected))


PARTICLES: dict[str, Any] = {
    **STRATEGY,
    "seed": 5,
    "smc": {"particles": 8, "ess_threshold": 1.0},
}


def expected_run(sequence: int) -> Any:
    matcher = Regex(REGEX).compile(VOCABULARY)
    return run(TableRows([()]), matcher, sequence=sequence, **Strategy(**PARTICLES).run_options())


def check_run(outcome: Outcome, resamplings: list[ResamplingEvent]) -> None:
    expected = expected_run(4)
    assert outcome.log_evidence == expected.log_evidence
    assert [p.token_ids for p in outcome.particles] == [p.token_ids for p in expected.particles]
    assert [p.text for p in outcome.particles] == [p.text for p in expected.particles]
    assert outcome.ancestry == expected.ancestry and outcome.ess == expected.ess
    assert outcome.posterior() == expected.posterior()
    assert (outcome.status, outcome.seed, outcome.proper) == ("finished", 5, True)
    assert resamplings
    for event in resamplings:
        assert event.ancestors == expected.ancestry[event.position - 1]


def test_a_loop_over_particles_is_a_few_lines(client: Client) -> None:
    options: Any = {"strategy": PARTICLES, "sequence": 4, "shared_rows": 8}
    with client.particles(VOCABULARY, ROW, **options) as particles:
        rows = TableRows([()])
        while (growth := particles.step(rows.logits)) is not None:
            rows = rows.advance(growth.parents, growth.tokens)
        check_run(particles.outcome(), particles.resamplings)
        with pytest.raises(SidecarError):
            particles.step(rows.logits)


def test_the_awaited_loop_over_particles_gives_the_same(address: str, in_loop: Run) -> None:
    async def remote() -> None:
        async with (
            AsyncClient(address) as client,
            client.particles(VOCABULARY, ROW, strategy=PARTICLES, sequence=4) as particles,
        ):
            rows = TableRows([()])
            while (growth := await particles.step(rows.logits)) is not None:
                rows = rows.advance(growth.parents, growth.tokens)
            check_run(await particles.outcome(), particles.resamplings)

    in_loop(remote())


def test_a_run_that_is_ended_early_is_cancelled(client: Client) -> None:
    with client.particles(VOCABULARY, ROW, strategy=PARTICLES) as particles:
        particles.step(logits_of()[None])
        assert "cancelled" in {particle.status for particle in particles.outcome().particles}


def test_logits_may_be_written_where_they_are_read(client: Client) -> None:
    options: Any = {"strategy": STRATEGY, "shared_rows": 3}
    with client.process(VOCABULARY, ROW, **options) as stream:
        stream.buffer[1:] = np.stack([logits_of(0), logits_of(0)])
        result = stream.step(stream.buffer[1:], rows_of_step(0))
        assert all(map(same, result.rows, alone(1)[0]))
        for bad in (np.zeros((4, ROW), np.float32), np.zeros((1, 8), np.float32)):
            with pytest.raises(InputError) as raised:
                stream.step(bad, [RowOfStep(1)])
            assert raised.value.argument == "logits"
    with client.process(VOCABULARY, ROW, strategy=STRATEGY) as stream:
        with pytest.raises(InputError, match="shared_rows"):
            _ = stream.buffer


def test_masks_need_no_logits(client: Client) -> None:
    with client.process(VOCABULARY, ROW, strategy=STRATEGY, answer="mask") as stream:
        result = stream.step(None, [RowOfStep(1)])
        assert result.masks is not None and result.masks.shape == (1, 1)
        assert math.isnan(result.rows[0].log_weight)
        assert stream.step(None, [RowOfStep(1, token=1)]).rows[0].status == "running"
        assert stream.step(None, [RowOfStep(1, token=1)]).rows[0].status == "dead"


def test_a_vocabulary_that_the_server_does_not_know_is_sent(client: Client) -> None:
    tokens = [b"a", b"b", b"c", b"ab", b""]
    new = Vocabulary(tokens, eos_ids=[4])
    with pytest.raises(VocabularyError):
        client.process(new.fingerprint, 5)
    for vocabulary in (new, new.fingerprint):
        with client.process(vocabulary, 5, constraint=Regex("a*")) as stream:
            assert stream.ready.vocabulary_fingerprint == new.fingerprint
    other = Vocabulary(tokens, eos_ids=[2, 4])
    with client.process(new, 5, eos_ids=other.eos_ids) as stream:
        assert stream.ready.vocabulary_fingerprint == other.fingerprint
    text = (embedded_model_path() / "tokenizer.json").read_bytes()
    (model,) = client.models()
    with client.process(text, model.vocabulary_size) as stream:
        assert stream.ready.vocabulary_fingerprint == model.vocabulary_fingerprint


WRONG: dict[str, tuple[type[InputError], str, dict[str, Any]]] = {
    "regex": (ConstraintError, "strategy.constraint.regex", {"constraint": {"regex": "("}}),
    "row": (VocabularyError, "handshake.row_size", {"row_size": 3}),
    "awrs": (
        StrategyError,
        "strategy.sampler.awrs.rejects",
        {"strategy": {"sampler": {"awrs": {}}}},
    ),
    "limit": (
        StrategyError,
        "strategy.limits.max_new_tokens",
        {"strategy": {"limits": {"max_new_tokens": 1 << 20}}},
    ),
    "answer": (StrategyError, "handshake.answer", {"answer": "mask", "constraint": None}),
    "eos": (VocabularyError, "handshake.eos_ids", {"eos_ids": [77]}),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_server_refuses_is_the_error_of_the_library(case: str, client: Client) -> None:
    kind, field_, changes = WRONG[case]
    options = {"vocabulary": VOCABULARY, "row_size": ROW, "constraint": Regex(REGEX), **changes}
    with pytest.raises(kind) as raised:
        client.process(**options)
    assert type(raised.value) is kind and raised.value.argument == field_
    assert raised.value.accepted and str(raised.value.got)


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (lambda: Client("nowhere"), "target"),
        (lambda: Client("unix:/tmp/x", tls=ClientTls()), "tls"),
        (lambda: Client("example.org:1", token="secret" * 4), "token"),
        (lambda: Client("example.org:1", tls=ClientTls(ca=Path("/absent"))), "tls.ca"),
        (lambda: built_strategy({"constraint": {"regex": "a"}}, Regex("b")), "constraint"),
        (
            lambda: built_strategy(None, Predicate(prefix=lambda t: True, complete=lambda t: True)),
            "constraint",
        ),
        (lambda: built_strategy(None, Choice([b"\xff"])), "constraint"),
        (lambda: built_strategy({"sampler": "none"}, None), "sampler"),
    ],
)
def test_what_is_wrong_here_is_told_before_any_call(make: Any, argument: str) -> None:
    with pytest.raises(InputError) as raised:
        make()
    assert raised.value.argument == argument


def test_wrong_calls_of_streams_are_told_before_any_message(client: Client) -> None:
    with pytest.raises(StrategyError, match="particles"):
        client.process(VOCABULARY, ROW, strategy=PARTICLES)
    for changes in ({"dtype": "int8"}, {"answer": "text"}, {"shared_rows": -1}):
        options: Any = {"constraint": Regex(REGEX), **changes}
        with pytest.raises(InputError):
            client.process(VOCABULARY, ROW, **options)


class Answer(pydantic.BaseModel):
    """For a schema."""

    name: str


@pytest.mark.parametrize(
    "constraint",
    [
        Regex("a+"),
        JsonSchema({"type": "integer"}, whitespace="flexible"),
        JsonSchema(Answer),
        Grammar('start: "a"'),
        Choice(["a", "bc"]),
        AllOf([Regex("a+"), Choice(["a", "aa"])]),
    ],
)
def test_constraints_are_sent_as_data_that_builds_them_again(constraint: Any) -> None:
    strategy = built_strategy({"seed": 3}, constraint)
    assert strategy.build_constraint() == constraint
    assert strategy.model_fields_set == {"seed", "constraint"}


def test_output_types_are_constraints() -> None:
    assert built_strategy(None, Answer).build_constraint() == JsonSchema(Answer)
    assert built_strategy(None, {"regex": "a"}).build_constraint() == Regex("a")


def test_an_error_s_kind_goes_by_its_field() -> None:
    for field_, kind in {
        "strategy.constraint.all_of[1].regex": ConstraintError,
        "strategy.constraints": StrategyError,
        "strategy": StrategyError,
        "handshake.tokens": VocabularyError,
        "step.rows[0].token": InputError,
        "model": InputError,
    }.items():
        error = input_error(field_, "got this; accepted: that; accepted: more")
        assert type(error) is kind
        assert (error.got, error.accepted) == ("this", "that; accepted: more")
    assert input_error("x", "no such form").accepted == "no such form"


DIGITS: dict[str, Any] = {"limits": {"max_new_tokens": 8}, "seed": 1, "smc": {"particles": 4}}


def test_generate_tells_what_happens_and_sums_up(client: Client) -> None:
    events: list[Event] = []
    outcome = client.generate(
        "Year: ", constraint=Regex("[0-9]{4}"), strategy=DIGITS, on_event=events.append
    )
    assert outcome.status == "finished" and len(outcome.particles) == 4
    assert all(len(p.text) == 4 and p.text.isdigit() for p in outcome.particles)
    first, *others = events
    (model,) = client.models()
    assert isinstance(first, StartedEvent)
    assert first.vocabulary_fingerprint == model.vocabulary_fingerprint
    steps = [event for event in others if isinstance(event, TokensEvent)]
    assert [step.position for step in steps] == list(range(len(steps)))
    assert len(steps) + sum(isinstance(e, ResamplingEvent) for e in others) == len(others)
    quiet = client.generate("Year: ", constraint=Regex("[0-9]{4}"), strategy=DIGITS)
    once = client.generate_once("Year: ", constraint=Regex("[0-9]{4}"), strategy=DIGITS)
    by_ids = client.generate_once(
        first.prompt_token_ids, strategy={**DIGITS, "constraint": {"regex": "[0-9]{4}"}}
    )
    assert outcome == quiet == once == by_ids
    other = client.generate_once(
        "Year: ", constraint=Regex("[0-9]{4}"), strategy=DIGITS, occurrence=1
    )
    assert other.particles != once.particles
    assert model.is_default and model.model == "embedded" and model.eos_ids


def test_the_awaited_client_generates_the_same(address: str, client: Client, in_loop: Run) -> None:
    options: Any = {"constraint": Regex("[0-9]{4}"), "strategy": DIGITS}

    async def remote() -> tuple[Any, ...]:
        events: list[Event] = []
        async with AsyncClient(address) as awaited:
            return (
                await awaited.generate("Year: ", on_event=events.append, **options),
                await awaited.generate_once("Year: ", **options),
                await awaited.models(),
                len(events),
            )

    outcome, once, models, count = in_loop(remote())
    assert outcome == once == client.generate_once("Year: ", **options)
    assert models == client.models() and count > 4


def test_generate_refuses_as_the_library_does(client: Client, address: str, in_loop: Run) -> None:
    for kind, argument, call in (
        (InputError, "model", {"model": "absent"}),
        (ConstraintError, "strategy.constraint.regex", {"constraint": {"regex": "("}}),
        (StrategyError, "strategy.law.temperature", {"strategy": {"law": {"temperature": 0.0}}}),
    ):
        options: Any = call
        with pytest.raises(kind) as raised:
            client.generate_once("x", **options)
        assert raised.value.argument == argument

        async def remote(options: Any = options) -> None:
            async with AsyncClient(address) as awaited:
                await awaited.generate("x", **options)

        with pytest.raises(kind):
            in_loop(remote())
    for prompt in (["x"], [-1]):
        with pytest.raises(InputError) as raised_here:
            client.generate(prompt)  # type: ignore[arg-type]
        assert raised_here.value.argument == "prompt"


def test_what_a_listener_raises_ends_the_call(client: Client) -> None:
    def stop(event: Event) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError):
        client.generate("x", strategy={"limits": {"max_new_tokens": 400}}, on_event=stop)


def test_a_deadline_is_told_as_such(client: Client) -> None:
    with pytest.raises(SidecarError) as raised:
        client.generate("x", strategy={"limits": {"max_new_tokens": 400}}, timeout_seconds=0.05)
    assert raised.value.code == "DEADLINE_EXCEEDED" and not raised.value.may_succeed_later


@dataclass
class Flaky:
    """Services that fail some times before they answer."""

    failures: list[Exception]
    told: bool = False
    calls: int = 0
    at: list[float] = field(default_factory=list)

    def services(self, runtime: Any) -> list[Service]:
        add_models = models_pb2_grpc.add_ModelsServicer_to_server
        add_decoding = decoding_pb2_grpc.add_DecodingServicer_to_server
        return [
            Service("midstream.v1.Models", add_models, self),
            Service("midstream.v1.Decoding", add_decoding, self),
        ]

    def fail(self) -> None:
        self.calls += 1
        self.at.append(time.monotonic())
        if self.failures:
            raise self.failures.pop(0)

    async def Get(self, request: Any, context: Any) -> Any:  # noqa: N802
        return models_pb2.Model()

    async def List(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.fail()
        return models_pb2.ListModelsResponse()

    async def GenerateOnce(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.fail()
        return decoding_pb2.GenerateResponse(summary=_SUMMARY)

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.told:
            yield decoding_pb2.GenerateEvent(started=decoding_pb2.Started())
        self.fail()
        yield decoding_pb2.GenerateEvent(summary=_SUMMARY)


_SUMMARY = decoding_pb2.GenerateEvent().summary
_SUMMARY.status = 2


def test_what_may_be_done_twice_is_tried_again(serve: Serve, in_loop: Run) -> None:
    async def remote() -> None:
        for call in ("models", "generate", "generate_once"):
            flaky = Flaky([unavailable("later", 0.05), exhausted("too much", 0.2)])
            async with serve(flaky.services) as server:
                async with AsyncClient(server.addresses[0]) as client:
                    ask: Any = getattr(client, call)
                    await (ask() if call == "models" else ask("x"))
                assert flaky.calls == 3
                waits = np.diff(flaky.at)
                assert 0.04 < waits[0] and 0.19 < waits[1]  # as the server asked

    in_loop(remote())


def test_what_may_not_be_done_twice_is_not(serve: Serve, in_loop: Run) -> None:
    async def remote() -> None:
        for failure, told, retries, code in (
            (refused("model", "this", "that"), False, None, None),
            (unavailable("later", 0.01), True, None, "UNAVAILABLE"),  # an event had been told
            (unavailable("later", 0.01), False, Retries(attempts=1), "UNAVAILABLE"),
            (unavailable("much later", 1000.0), False, None, "UNAVAILABLE"),
        ):
            flaky = Flaky([failure] * 5, told=told)
            async with serve(flaky.services) as server:
                address = server.addresses[0]
                async with AsyncClient(address, timeout_seconds=20, retries=retries) as client:
                    with pytest.raises((SidecarError, InputError)) as raised:
                        await client.generate("x", on_event=lambda event: None)
            assert flaky.calls == 1
            assert getattr(raised.value, "code", None) == code

    in_loop(remote())


def test_a_client_that_blocks_waits_between_its_attempts(serve: Serve, in_loop: Run) -> None:
    flaky = Flaky([unavailable("later", 0.05)] * 2)

    async def remote() -> None:
        async with serve(flaky.services) as server:
            client = Client(server.addresses[0])
            await asyncio.to_thread(client.models)
            flaky.failures = [unavailable("later", 0.01)] * 99
            with pytest.raises(SidecarError) as raised:
                await asyncio.to_thread(client.generate, "x")
            assert raised.value.may_succeed_later and raised.value.retry_seconds == 0.01
            client.close()

    in_loop(remote())
    assert flaky.calls == 3 + 4


def test_a_token_goes_with_every_call(serve: Serve, in_loop: Run) -> None:
    secret = "0123456789abcdef" * 2

    def services(runtime: Any) -> list[Service]:
        flaky = Flaky([])
        return [*flaky.services(runtime), logits_processing(runtime, lambda: [VOCABULARY])]

    async def remote() -> None:
        async with serve(services, token=Token(secret)) as server:
            for token, good in ((secret, True), ("f" * 32, False), (None, False)):
                async with AsyncClient(server.addresses[0], token=token) as client:
                    stream = client.process(VOCABULARY, ROW, constraint=Regex(REGEX))
                    calls: list[Any] = [client.models(), client.generate("x"), stream.__aenter__()]
                    for call in calls:
                        if good:
                            await call
                            continue
                        with pytest.raises(SidecarError) as raised:
                            await call
                        assert raised.value.code == "UNAUTHENTICATED"
                    stream.end()

    in_loop(remote())
