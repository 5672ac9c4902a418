"""A real API server: strategies over HTTP, weights under the key, faults that stay small."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from midstream.adapters.vllm import VllmServerHost
from midstream.adapters.vllm.server_host import EngineError
from midstream.adapters.vllm.weights import RecordsLostError, by_sequence, weigh
from midstream.middleware.errors import StrategyError, VocabularyError
from midstream.middleware.random import sequence_of
from midstream.middleware.segments import run_segments
from midstream.middleware.strategy import Strategy

pytestmark = pytest.mark.timeout(600)
CITY = "Guest 2179 picks a city:\n"
REGEX = {"constraint": {"regex": "San (Antonio|Marino)|Rome|Porto"}}
RECORD = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}

LONG_RECORD = {
    **RECORD,
    "properties": {
        "name": {"type": "string", "minLength": 60, "maxLength": 90},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
}
DEAR = {
    "a large automaton": {"regex": "((a|b|c|d|e){0,200}[a-z ]{0,30}){1,4}(x|y)"},
    "a schema of counts": {
        "json_schema": {
            "type": "array",
            "items": {"type": "string", "pattern": "^(a|b|[c-z ]{1,200}){1,100}$"},
            "minItems": 50,
        }
    },
    "a terminal that is dear": {
        "grammar": "start: A\nA: /((a|b|c|d|e){0,300}[a-z ]{0,30}){1,40}(x|y)/"
    },
    "an ambiguous grammar": {"grammar": "start: e\ne: e e | /[a-z ]/"},
}
"""Of what admission accepts, the dearest that were found to compile, and to step through."""


@pytest.fixture(scope="module")
def crowded(start: Callable[..., Any]) -> Any:
    """A server whose requests must give way to each other, and that has the path for token ids."""
    return start("--num-gpu-blocks-override", "24", "--enable-scale-out")


@pytest.fixture(scope="module")
def host(server: Any, tokenizer: Any) -> Iterator[VllmServerHost]:
    with VllmServerHost(server.url, tokenizer, api_key=server.key) as host:
        yield host


@pytest.fixture(scope="module", params=["/v1/completions", "/inference/v1/generate"])
def each_host(request: pytest.FixtureRequest, tokenizer: Any) -> Iterator[VllmServerHost]:
    """A host over each path that takes token ids; what it asks for and what comes is kept."""
    name = "crowded" if "generate" in request.param else "server"
    server: Any = request.getfixturevalue(name)
    with VllmServerHost(server.url, tokenizer, api_key=server.key) as host:
        assert host._path == request.param
        yield host


def _weights(server: Any, key: str) -> dict[int, dict[int, Any]]:
    response = httpx.get(f"{server.url}/v1/midstream/weights/{key}", headers=server.headers)
    assert response.status_code == 200, response.text
    return by_sequence(response.json()["records"])


def test_eight_texts_and_their_weights(server: Any, tokenizer: Any) -> None:
    answer = server.complete(REGEX, n=8, named={"id": "eight-texts-of-one-request"})
    assert answer.status_code == 200, answer.text
    ids = tokenizer(CITY).input_ids
    records = _weights(server, "eight-texts-of-one-request")
    assert len(records) == 8
    texts = [
        weigh(
            choice["token_ids"], records[sequence_of(ids, choice["index"])], choice["finish_reason"]
        )
        for choice in answer.json()["choices"]
    ]
    assert {text.status for text in texts} == {"finished"}
    assert len({text.token_ids for text in texts}) > 2


def test_weights_are_guarded_by_the_key(server: Any) -> None:
    for path in ("/v1/midstream/weights/some-id-of-a-request", "/v1/midstream/vocabulary"):
        assert httpx.get(server.url + path).status_code == 401
    assert httpx.post(server.url + "/v1/midstream/prepare", json={}).status_code == 401
    missing = httpx.get(server.url + "/v1/midstream/weights/never-asked", headers=server.headers)
    assert missing.status_code == 404


@pytest.mark.parametrize(
    ("strategy", "fields", "named"),
    [
        ({"constraint": {"regex": "("}}, {}, "midstream.strategy.constraint.pattern"),
        ({"constraint": {"grammar": "start: <"}}, {}, "midstream.strategy.constraint.lark"),
        ({"constraint": {"grammar": "start: ("}}, {}, "midstream.strategy.constraint"),
        ({"sampler": "best"}, {}, "midstream.strategy.sampler"),
        ({"constraint": {"choice": 5}}, {}, "midstream.strategy.constraint"),
        ({"seed": -1}, {}, "midstream.strategy.seed"),
        (REGEX, {"min_tokens": 2}, "min_tokens"),
        (REGEX, {"presence_penalty": 1.0}, "presence_penalty"),
        (REGEX, {"logit_bias": {"5": 1.0}}, "logit_bias"),
        (REGEX, {"top_p": 0.5}, "midstream.strategy.law.truncation"),
        (REGEX, {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
def test_what_cannot_be_done_is_a_400_that_names_the_field(
    server: Any, strategy: Any, fields: Any, named: str
) -> None:
    answer = server.complete(strategy, **fields)
    assert answer.status_code == 400, answer.text
    assert named in answer.text
    assert httpx.get(server.url + "/health").status_code == 200


@pytest.mark.parametrize("value", ["{", "[]", "7", '{"strategy": 5}', "null"])
def test_arguments_of_the_wrong_type(server: Any, value: str) -> None:
    body = {"prompt": CITY, "max_tokens": 4, "vllm_xargs": {"midstream": value}}
    answer = server.post("/v1/completions", body)
    assert answer.status_code == 400, answer.text
    assert "midstream" in answer.text


@pytest.mark.parametrize("every", [1, 16])
def test_particles_over_http_are_those_of_transformers(
    each_host: VllmServerHost, reference: Any, tokenizer: Any, every: int
) -> None:
    from midstream.middleware.smc import run

    ids = tokenizer(CITY).input_ids
    for seed in range(3):
        smc = {"particles": 6, "resample_every": every}
        strategy = Strategy(**REGEX, smc=smc, seed=seed, limits={"max_new_tokens": 12})
        found = run_segments(each_host, ids, strategy, sequence=sequence_of(ids))
        matcher = strategy.build_constraint().compile(reference.vocabulary)
        rows = reference.start([ids])
        truth = run(rows, matcher, sequence=sequence_of(ids), **strategy.run_options())
        assert [p.token_ids for p in found.particles] == [p.token_ids for p in truth.particles]
        assert found.log_evidence == pytest.approx(truth.log_evidence, abs=1e-3)


def test_each_segment_hits_the_prefix_cache(
    host: VllmServerHost, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cached tokens of a continued particle are the whole blocks of all that came before."""
    prompt = tokenizer("A story of guests and cities:\n").input_ids
    assert len(prompt) % 16  # so that no segment ends where a block does
    read: list[tuple[int, int]] = []
    post = host._post

    async def noting(path: str, body: Any) -> Any:
        answer = await post(path, body)
        if "prompt" in body:
            usage = answer["usage"]
            cached = (usage["prompt_tokens_details"] or {}).get("cached_tokens", 0)
            read.append((len(body["prompt"]), cached))
        return answer

    monkeypatch.setattr(host, "_post", noting)
    strategy = Strategy(
        constraint={"regex": "([A-Z][a-z ]{3,40}[.] )+"},
        smc={"particles": 8, "resample_every": 16, "ess_threshold": 0.9},
        limits={"max_new_tokens": 128},
    )
    result = run_segments(host, prompt, strategy)
    assert sum(ancestors != tuple(range(8)) for ancestors in result.ancestry) >= 4
    assert max(length for length, _ in read) > 96
    for length, cached in read:
        assert cached == length // 32 * 32


def test_preparing_a_constraint(host: VllmServerHost) -> None:
    host.prepare(Strategy(constraint={"json_schema": RECORD}))
    with pytest.raises(StrategyError, match="400"):
        host.prepare(Strategy(constraint={"json_schema": {"type": "object", "$ref": "#/nowhere"}}))


def test_a_client_of_another_model_or_without_the_key(server: Any, model_path: Path) -> None:
    from midstream.middleware.vocabulary import Vocabulary

    other = Vocabulary([b"a", b"b", b""], eos_ids=(2,))
    with pytest.raises(VocabularyError, match="fingerprint"):
        VllmServerHost(server.url, other, api_key=server.key)
    with pytest.raises(EngineError, match="401"):
        VllmServerHost(server.url, other)


def _metric(server: Any, name: str) -> float:
    lines = httpx.get(server.url + "/metrics", headers=server.headers).text.splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))


def test_many_at_once_a_third_aborted_and_some_preempted(crowded: Any, tokenizer: Any) -> None:
    """64 requests: what is answered satisfies its constraint, and each weight is accounted for."""
    server, ids = crowded, tokenizer(CITY).input_ids
    preempted = _metric(server, "vllm:num_preemptions_total")

    async def one(client: httpx.AsyncClient, index: int) -> Any:
        strategy = REGEX if index % 2 else {"constraint": {"json_schema": LONG_RECORD}}
        asked = {"strategy": {**strategy, "seed": index}, "id": f"one-of-many-requests-{index}"}
        body = {
            "model": "zoo", "prompt": ids, "max_tokens": 120, "temperature": 1.0,
            "return_token_ids": True, "vllm_xargs": {"midstream": json.dumps(asked)},
        }  # fmt: skip
        timeout = 0.05 if index % 3 == 0 else 120.0
        try:
            answer = await client.post("/v1/completions", json=body, timeout=timeout)
        except httpx.TimeoutException:
            return None
        return answer.json()["choices"][0]

    async def all_of_them() -> list[Any]:
        limits = httpx.Limits(max_connections=64)
        options: Any = {"base_url": server.url, "headers": server.headers, "limits": limits}
        async with httpx.AsyncClient(**options) as client:
            return await asyncio.gather(*(one(client, i) for i in range(64)))

    answers = asyncio.run(all_of_them())
    assert any(answer is None for answer in answers)
    whole = 0
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        records = _weights(server, f"one-of-many-requests-{index}")[sequence_of(ids, 0)]
        text = weigh(answer["token_ids"], records, answer["finish_reason"])
        assert math.isfinite(text.log_weight), text
        if text.status != "finished":
            continue
        whole += 1
        if index % 2:
            assert answer["text"] in {"San Antonio", "San Marino", "Rome", "Porto"}
        else:
            assert json.loads(answer["text"]).keys() == {"name", "age"}
    assert whole >= 30
    assert _metric(server, "vllm:num_preemptions_total") > preempted
    assert httpx.get(server.url + "/health").status_code == 200


@pytest.mark.parametrize("kind", DEAR)
def test_the_worst_strategy_does_not_hold_up_others(server: Any, kind: str) -> None:
    """Plain requests and /health take at most twice as long beside it, compiling included.

    Beside a request that asks for nothing dear: a batch of two takes longer than one of one. What
    else the machine does may spoil a look, so there are some; a strategy that is dear fails all.
    """
    cheap = {"prompt": CITY, "max_tokens": 400, "temperature": 1.0, "ignore_eos": True}
    ratios = []
    for attempt in range(4):
        asked = {"strategy": {"constraint": DEAR[kind], "seed": attempt}}
        dear = {**cheap, "ignore_eos": False, "vllm_xargs": {"midstream": json.dumps(asked)}}
        alone, with_it = _times_beside(server, cheap), _times_beside(server, dear)
        ratios.append(tuple(new / old for new, old in zip(with_it, alone, strict=True)))
        if max(ratios[-1]) < 2.0:
            break
    print(kind, ratios)
    assert max(ratios[-1]) < 2.0, ratios


def _times_beside(server: Any, body: dict[str, Any]) -> tuple[float, float]:
    """Median seconds of a plain request and of /health while requests of `body` follow each other.

    On connections that stay: to open one takes longer than what is measured.
    """
    plain = {"prompt": CITY, "max_tokens": 24, "temperature": 0.0, "ignore_eos": True}
    stop = threading.Event()

    def connection() -> httpx.Client:
        return httpx.Client(base_url=server.url, headers=server.headers, timeout=60)

    def again() -> None:
        with connection() as client:
            while not stop.is_set():
                assert client.post("/v1/completions", json=body).status_code == 200

    def taken(ask: Callable[[], httpx.Response]) -> float:
        begin = time.perf_counter()
        assert ask().status_code == 200
        return time.perf_counter() - begin

    thread = threading.Thread(target=again)
    thread.start()
    completions, healths = [], []
    try:
        with connection() as client:
            client.get("/health")
            for _ in range(12):
                completions.append(taken(lambda: client.post("/v1/completions", json=plain)))
                healths += [taken(lambda: client.get("/health")) for _ in range(8)]
    finally:
        stop.set()
        thread.join(120)
    return statistics.median(completions), statistics.median(healths)


def test_an_engine_that_dies_is_an_error_and_no_result(
    start: Callable[..., Any], tokenizer: Any
) -> None:
    doomed = start()
    ids = tokenizer(CITY).input_ids
    strategy = Strategy(
        constraint={"regex": "[a-z ]{200}"},
        smc={"particles": 4, "resample_every": 4},
        limits={"max_new_tokens": 220},
    )
    with VllmServerHost(doomed.url, tokenizer, api_key=doomed.key, retries=1, timeout_s=20) as host:
        segments = 0

        def kill_at_the_third(particles: Any) -> None:
            nonlocal segments
            segments += 1
            if segments == 3:
                os.killpg(doomed.process.pid, signal.SIGKILL)

        begin = time.monotonic()
        with pytest.raises((EngineError, RecordsLostError)):
            run_segments(host, ids, strategy, on_segment=kill_at_the_third)
        assert time.monotonic() - begin < 60
