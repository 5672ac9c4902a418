"""`VllmServerHost`: particles over a vLLM server, by HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import numpy as np

from midstream.adapters.vllm.rows import EngineRows, Float32, of_named, request_of
from midstream.adapters.vllm.segment_requests import (
    COMPLETIONS,
    GENERATE,
    completion_body,
    generate_body,
    key_of,
    segment_of,
)
from midstream.adapters.vllm.waiting import finished_or_cancelled
from midstream.adapters.vllm.weights import RecordsLostError
from midstream.adapters.vllm.worker_extension import PlainRecord
from midstream.middleware.errors import StrategyError, VocabularyError
from midstream.middleware.segments import Continuation, Segment
from midstream.middleware.strategy import Strategy
from midstream.middleware.vocabulary import Vocabulary

CONNECTIONS = 64


class EngineError(RuntimeError):
    """A server that cannot be reached, died, or answered with a fault of its own."""


class VllmServerHost:
    """A host over a vLLM server, as `Segments`: see `midstream.middleware.segments.run_segments`.

    url: of the server, without /v1. tokenizer: the model's, or a Vocabulary; the server's own must
        be the same. model: its name there, as it comes the only one. api_key: of `--api-key`.
    timeout_s: for the answer to one request.
    The server needs our processor, worker extension and endpoint plugin, see docs/vllm.md. Token
    ids go in and come out, by `/inference/v1/generate` where the server has it, else by
    `/v1/completions`. A request that fails is sent again as it was, up to `retries` times: it
    has a name of its own and is counted once. Raises EngineError where the server is gone,
    VocabularyError for another model's tokenizer, StrategyError for what the server refuses.
    """

    def __init__(
        self,
        url: str,
        tokenizer: Any,
        *,
        model: str | None = None,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        retries: int = 2,
    ) -> None:
        self.tokenizer = tokenizer
        self._retries = retries
        self._runner = asyncio.Runner()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"),
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=10.0),
            limits=httpx.Limits(max_connections=CONNECTIONS),
        )
        told = self._runner.run(self._get("/v1/midstream/vocabulary"))
        self._vocabulary = _same_vocabulary(tokenizer, told)
        served = self._runner.run(self._get("/v1/models"))["data"]
        self._model = model or str(served[0]["id"])
        longest = {one["id"]: one.get("max_model_len") for one in served}.get(self._model)
        self._context_length = None if longest is None else int(longest) - 1
        self._path, self._body = self._runner.run(self._offered())

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary."""
        return self._vocabulary

    @property
    def context_length(self) -> int | None:
        """How many tokens a prompt may have: one more has to be drawn. None where not told."""
        return self._context_length

    def start(self, prompts: Sequence[Sequence[int]]) -> EngineRows:
        """Prompts whose next-token laws are wanted, as `Rows`: for byte laws and exact healing.

        The logits are log probabilities at temperature 1, read by requests of one token. Reading
        them raises StrategyError for a server that does not show all of them: it needs
        `--max-logprobs -1`.
        """
        return EngineRows(lambda asked: self._runner.run(self._laws(asked)), prompts)

    def close(self) -> None:
        """Close all connections."""
        self._runner.run(self._client.aclose())
        self._runner.close()

    def __enter__(self) -> VllmServerHost:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def prepare(self, strategy: Strategy) -> None:
        """Have the server compile a strategy's constraint, and wait for it."""
        body = {"strategy": strategy.model_dump(mode="json", exclude_unset=True)}
        self._runner.run(self._post("/v1/midstream/prepare", body))

    def extend(
        self,
        prefixes: Sequence[Continuation],
        steps: int,
        strategy: Strategy,
        *,
        cancelled: Callable[[], bool] | None = None,
    ) -> list[Segment]:
        """See `Segments.extend`. Cancelling closes the connections, which ends the requests."""
        try:
            return self._runner.run(self._extend(prefixes, steps, strategy, cancelled))
        except ExceptionGroup as group:  # the first failure ends the others
            raise group.exceptions[0] from None

    async def _extend(
        self,
        prefixes: Sequence[Continuation],
        steps: int,
        strategy: Strategy,
        cancelled: Callable[[], bool] | None,
    ) -> list[Segment]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._complete(prefix, steps, strategy)) for prefix in prefixes
            ]
            await finished_or_cancelled(tasks, cancelled)
        done = [i for i, task in enumerate(tasks) if not task.cancelled()]
        records = await self._records([key_of(prefixes[i]) for i in done])
        segments = [Segment((), 0.0, 0, "cancelled", "stopped in the middle of it")] * len(prefixes)
        for i in done:
            choice = tasks[i].result()
            rows = records[key_of(prefixes[i])]
            ids, reason = choice["token_ids"], choice["finish_reason"]
            segments[i] = segment_of(prefixes[i], ids, reason, rows)
        return segments

    async def _complete(
        self, prefix: Continuation, steps: int, strategy: Strategy
    ) -> dict[str, Any]:
        body = self._body(prefix, steps, strategy)
        answer = await self._post(self._path, {**body, "model": self._model})
        choice: dict[str, Any] = answer["choices"][0]
        return choice

    async def _offered(self) -> tuple[str, Callable[..., dict[str, Any]]]:
        """Where token ids go in and out.

        An empty request is refused as one where the path is open, else with 403 or 404.
        """
        try:
            response = await self._client.post(GENERATE, json={})
        except httpx.TransportError as error:
            raise EngineError(f"{self._client.base_url}: {type(error).__name__}: {error}") from None
        if response.status_code in (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY):
            return GENERATE, generate_body
        return COMPLETIONS, completion_body

    async def _laws(self, prompts: Sequence[Sequence[int]]) -> Float32:
        size = len(self._vocabulary)
        bodies = [{**request_of(prompt, size), "model": self._model} for prompt in prompts]
        try:
            answers = await asyncio.gather(*(self._post(COMPLETIONS, body) for body in bodies))
        except StrategyError as error:
            if "logprobs" not in error.accepted:
                raise
            got = f"a server that does not show all log probabilities ({error.accepted})"
            accepted = "one that does: start the server with --max-logprobs -1"
            raise StrategyError("url", got, accepted) from None
        found = [answer["choices"][0]["logprobs"]["top_logprobs"][0] for answer in answers]
        return np.stack([of_named(each, size) for each in found])

    async def _records(self, keys: Sequence[str]) -> dict[str, list[PlainRecord]]:
        if not keys:
            return {}
        answer = await self._post("/v1/midstream/weights", {"ids": list(keys)})
        found: dict[str, list[PlainRecord]] = answer["records"]
        for key, rows in found.items():
            if rows is None:
                raise RecordsLostError(f"no records of {key}: the server forgot them, or restarted")
        return found

    async def _get(self, path: str) -> Any:
        return await self._answer(lambda: self._client.get(path))

    async def _post(self, path: str, body: dict[str, Any]) -> Any:
        return await self._answer(lambda: self._client.post(path, json=body))

    async def _answer(self, ask: Callable[[], Any]) -> Any:
        """The JSON of an answer; asked again where the connection failed or the server is full."""
        fault = ""
        for attempt in range(self._retries + 1):
            if attempt:
                await asyncio.sleep(0.2 * 2**attempt)
            try:
                response: httpx.Response = await ask()
            except httpx.TransportError as error:
                fault = f"{type(error).__name__}: {error}"
                continue
            if response.status_code == httpx.codes.OK:
                return response.json()
            fault = f"{response.status_code}: {_message(response)}"
            if response.status_code not in (429, 503):
                break
        if fault[:3] in ("400", "422"):
            raise StrategyError("strategy", "what the server refuses", fault)
        raise EngineError(f"the vLLM server at {self._client.base_url} failed: {fault}")


def _message(response: httpx.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return str(response.text)[:300]
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message", error.get("detail", error)) if isinstance(error, dict) else error
    return str(text)[:600]


def _same_vocabulary(tokenizer: Any, told: dict[str, Any]) -> Vocabulary:
    """The caller's vocabulary, which must be the server's."""
    vocabulary = tokenizer
    if not isinstance(tokenizer, Vocabulary):
        eos, size = told["eos_ids"], told["size"]
        vocabulary = Vocabulary.from_tokenizer(tokenizer, eos_ids=eos, size=size)
    if vocabulary.fingerprint != told["fingerprint"]:
        got = f"a vocabulary of fingerprint {vocabulary.fingerprint}"
        accepted = f"that of the server's model, {told['fingerprint']}"
        raise VocabularyError("tokenizer", got, accepted)
    found: Vocabulary = vocabulary
    return found
