"""The service Bytes on a running server, its clients, and healing in Decoding."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np
import pytest

from midstream.adapters.cli.generation import generation as cli_generation
from midstream.adapters.sidecar.byte_requests import METRICS
from midstream.adapters.sidecar.bytes_service import bytes_service
from midstream.adapters.sidecar.client import AsyncClient, Client, Reading
from midstream.adapters.sidecar.client.requests import StartedEvent
from midstream.adapters.sidecar.decoding_service import decoding
from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.models import Models
from midstream.adapters.sidecar.runtime import Runtime, Service
from midstream.adapters.sidecar.server import Sidecar
from midstream.middleware.bytes.model import ByteModel
from midstream.middleware.constraints import Regex
from midstream.middleware.errors import InputError
from midstream.middleware.strategy import Strategy

TEXTS: Sequence[str | bytes] = ("def ma", b"Guest 7 picks a ci", "", b"ab\xff\xfe")
Run = Callable[[Awaitable[Any]], Any]
Serve = Callable[..., AbstractAsyncContextManager[Sidecar]]


@pytest.fixture(scope="module")
def models() -> Models:
    made = Models({"small": "embedded"})
    made.load()
    return made


@pytest.fixture
def call(serve: Serve, in_loop: Run, models: Models) -> Callable[..., Any]:
    """`call(work, **limits)`: what `await work(client)` gives, of a server with the model."""

    def services(runtime: Runtime) -> Sequence[Service]:
        return [bytes_service(runtime, models), decoding(runtime, models)]

    def run(work: Callable[[AsyncClient], Awaitable[Any]], **limits: Any) -> Any:
        async def both() -> Any:
            async with (
                serve(services, limits=Limits(**limits)) as sidecar,
                AsyncClient(sidecar.addresses[0]) as client,
            ):
                return await work(client)

        return in_loop(both())

    return run


@pytest.fixture(scope="module")
def byte_model(models: Models) -> ByteModel:
    laws = models.get("small").bytes
    return laws.model("canonical", width=8, token_temperature=1.0, byte=1.0)


def test_the_laws_are_those_of_the_model_in_process(
    call: Callable[..., Any], byte_model: ByteModel
) -> None:
    laws = call(lambda client: client.bytes.next_byte(TEXTS))
    for text, law in zip(TEXTS, laws, strict=True):
        data = text.encode() if isinstance(text, str) else text
        expected = byte_model.law(data)
        assert law.status == expected.status and law.target == "canonical"
        assert np.allclose(law.p, expected.p, rtol=1e-4, atol=1e-9)
        assert law.undecided == ""
    assert [law.status for law in laws] == ["running"] * 3 + ["dead"]
    assert laws[3].p.sum() == 0.0 and laws[3].log_mass == -math.inf


def test_scores_and_covers(call: Callable[..., Any], byte_model: ByteModel) -> None:
    async def work(client: AsyncClient) -> Any:
        return await client.bytes.score(TEXTS), await client.bytes.cover(TEXTS[:2], most=3)

    scores, covers = call(work)
    for text, score in zip(TEXTS[:2], scores, strict=False):
        data = text.encode() if isinstance(text, str) else text
        report = byte_model.report(data)
        assert score.log_p == pytest.approx(report.log_p, rel=1e-4)
        assert score.bits_per_byte == pytest.approx(report.bits_per_byte, rel=1e-4)
        assert score.bits_per_byte_tokens == pytest.approx(report.bits_per_byte_tokens, rel=1e-4)
        assert np.allclose(score.log_p_bytes, report.log_p_bytes, rtol=1e-3, atol=1e-4)
    assert scores[3].status == "dead" and scores[3].log_p == -math.inf
    for text, cover in zip(TEXTS[:2], covers, strict=True):
        data = text.encode() if isinstance(text, str) else text
        elements = byte_model.cover(data)
        assert cover.count == len(elements) and len(cover.elements) == min(3, len(elements))
        assert cover.elements[0][0] == elements[0][0]
        assert cover.log_mass == pytest.approx(byte_model.score(data), rel=1e-4)


def test_every_token_string_by_a_beam(call: Callable[..., Any]) -> None:
    reading = Reading(target="all", beam_width=4)
    law, score = call(
        lambda client: asyncio.gather(
            client.bytes.next_byte(TEXTS[:1], reading=reading),
            client.bytes.score(TEXTS[3:], reading=reading),
        )
    )
    assert law[0].target == "all" and law[0].log_pruned > -math.inf
    assert score[0].status == "running" and score[0].bits_per_byte_tokens is None


def test_healed_prompts(call: Callable[..., Any], models: Models) -> None:
    model = models.get("small")
    texts = ["def retur", "Guest 7 pi", "def retur"]
    ids = [model.encode(text) for text in texts]

    async def work(client: AsyncClient) -> Any:
        return (
            await client.bytes.heal(texts, seed=3),
            await client.bytes.heal(ids, seed=3, heal=[True, False, True]),
            await client.bytes.heal(texts[:1], constraint=Regex("[0-9]+"), seed=3),
            await client.bytes.heal(texts[:1], law={"temperature": 0.0}),
        )

    healed, same, constrained, greedy = call(work)
    decode = model.vocabulary.decode
    for text, each in zip(texts, healed, strict=True):
        assert decode(each.token_ids) == text.encode() + each.overshoot
        assert each.status == "running" and each.method == "cover"
    for one, other in ((same[0], healed[0]), (same[2], healed[2])):
        assert one.token_ids == other.token_ids  # but for the noise of another batch
        assert one.log_cover == pytest.approx(other.log_cover, abs=1e-4)
    assert same[1].method == "off" and same[1].token_ids == tuple(ids[1])
    over = constrained[0].overshoot
    assert over == b"" or over.isdigit()
    assert constrained[0].log_weight < 0
    assert constrained[0].log_cover == pytest.approx(healed[0].log_cover, abs=1e-4)
    assert greedy[0].status == "running"


def test_decoding_heals_as_the_command_line_does(call: Callable[..., Any], models: Models) -> None:
    fields = {
        "constraint": {"regex": "[a-z]{2,9}"},
        "healing": {},
        "smc": {"particles": 3},
        "seed": 11,
        "limits": {"max_new_tokens": 12},
    }
    events: list[Any] = []
    prompt = "def retur"

    async def work(client: AsyncClient) -> Any:
        told = await client.generate(prompt, strategy=fields, on_event=events.append)
        return told, await client.generate_once(prompt, strategy=fields)

    told, once = call(work)
    assert [p.text for p in told.particles] == [p.text for p in once.particles]
    started = next(event for event in events if isinstance(event, StartedEvent))
    vocabulary = models.get("small").vocabulary
    spelt = vocabulary.decode(started.prompt_token_ids)
    assert spelt == prompt.encode() + started.overshoot
    assert started.log_cover is not None and started.log_cover < 0
    here = cli_generation(Strategy(**fields), "embedded", prompt, lambda done, what: None)
    for one, other in zip(told.particles, here.result.particles, strict=True):
        assert one.token_ids == other.token_ids
        assert one.text == other.text and one.text.startswith(started.overshoot.decode())
        assert one.log_weight == pytest.approx(other.log_weight, abs=1e-3)


def test_blocking_client_and_metrics(serve: Serve, in_loop: Run, models: Models) -> None:
    async def work() -> tuple[Any, str]:
        runtimes: list[Runtime] = []

        def services(runtime: Runtime) -> Sequence[Service]:
            runtimes.append(runtime)
            return [bytes_service(runtime, models)]

        async with serve(services) as sidecar:

            def ask() -> Any:
                with Client(sidecar.addresses[0]) as client:
                    calls = client.bytes
                    return (
                        calls.next_byte(["a"], byte_temperature=0.5, context_ids=[0]),
                        calls.score(["a"]),
                        calls.cover(["a"]),
                        calls.heal(["ab"]),
                    )

            answers = await asyncio.to_thread(ask)
            from prometheus_client import generate_latest

            return answers, generate_latest(runtimes[0].telemetry.metrics.registry).decode()

    answers, metrics = in_loop(work())
    assert [len(each) for each in answers] == [1, 1, 1, 1]
    assert answers[0][0].p.sum() == pytest.approx(1.0)
    assert f'service="{METRICS}"' in metrics
    assert 'method="/midstream.v1.Bytes/Heal"' in metrics or "Bytes" in metrics


@pytest.mark.parametrize(
    ("ask", "field"),
    [
        (lambda c: c.bytes.next_byte([]), "texts"),
        (lambda c: c.bytes.next_byte(["a"] * 5), "texts"),
        (lambda c: c.bytes.score(["a" * 200]), "texts.0.text"),
        (lambda c: c.bytes.score(["a" * 50], reading=Reading(target="all")), "texts.0.text"),
        (lambda c: c.bytes.next_byte(["a"], context_ids=[9_999_999]), "texts.0.context.ids"),
        (lambda c: c.bytes.next_byte(["a"], byte_temperature=0.0), "byte_temperature"),
        (
            lambda c: c.bytes.next_byte(["a"], reading=Reading(token_temperature=-1.0)),
            "reading.token_temperature",
        ),
        (
            lambda c: c.bytes.next_byte(["a"], reading=Reading(target="all", beam_width=0)),
            "reading.beam_width",
        ),
        (lambda c: c.bytes.heal([[]]), "prompts.0.token_ids"),
        (lambda c: c.bytes.heal([""]), "prompts.0.text"),
        (lambda c: c.bytes.heal([[9_999_999]]), "prompts.0.token_ids"),
        (lambda c: c.bytes.heal(["a" * 200]), "prompts.0.text"),
        (lambda c: c.bytes.heal(["a"], law={"top_k": 3}), "law"),
        (lambda c: c.bytes.heal(["a"], constraint={"regex": "("}), "strategy.constraint.regex"),
    ],
)
def test_bad_input_names_the_field(call: Callable[..., Any], ask: Any, field: str) -> None:
    limits = {"byte_texts": 4, "byte_text_bytes": 128, "beam_bytes": 32}
    with pytest.raises(InputError) as caught:
        call(ask, **limits)
    assert caught.value.argument.startswith(field)


def test_an_unknown_model(call: Callable[..., Any]) -> None:
    with pytest.raises(InputError, match="model: got no; accepted: one of small"):
        call(lambda client: client.bytes.next_byte(["a"], reading=Reading(model="no")))
