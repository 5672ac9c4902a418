"""The two engines of Python callers, `LLM` and `AsyncLLM`, as a host uses them: requests go in
together, and what each drew comes out.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from midstream.adapters.vllm.waiting import finished_or_cancelled
from midstream.middleware.errors import InputError

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.v1.engine.async_llm import AsyncLLM

T = TypeVar("T")

Asked = tuple[str, "list[int]", "SamplingParams"]
"""A request: its name, the ids of its prompt, and its parameters."""


class Engine(Protocol):
    """An engine of this process, or one that belongs to it."""

    @property
    def config(self) -> Any:
        """Its VllmConfig."""

    def call(self, method: str, *arguments: Any) -> Any:
        """The answer of the first worker: all of them draw alike."""

    def complete(self, asked: Sequence[Asked], cancelled: Callable[[], bool] | None) -> list[Any]:
        """The CompletionOutput of each request, as far as it came: None where no token did.

        What runs when `cancelled` turns true is aborted in the engine.
        """


class OfflineEngine:
    """Over `vllm.LLM`, which is driven step by step."""

    def __init__(self, llm: LLM) -> None:
        self._llm = llm

    @property
    def config(self) -> Any:
        """See `Engine.config`."""
        return self._llm.llm_engine.vllm_config

    def call(self, method: str, *arguments: Any) -> Any:
        """See `Engine.call`."""
        return self._llm.collective_rpc(method, args=arguments)[0]

    def complete(self, asked: Sequence[Asked], cancelled: Callable[[], bool] | None) -> list[Any]:
        """See `Engine.complete`. Cancelling takes effect within a step."""
        engine = self._llm.llm_engine
        for name, prompt, params in asked:
            engine.add_request(name, {"prompt_token_ids": prompt}, params)
        answers: dict[str, Any] = dict.fromkeys(name for name, _, _ in asked)
        while engine.has_unfinished_requests():
            if cancelled is not None and cancelled():
                engine.abort_request([*answers])
                break
            for output in engine.step():
                if output.request_id in answers:
                    answers[output.request_id] = output.outputs[0]
        return [*answers.values()]


class AsyncEngine:
    """Over `AsyncLLM`, in the event loop that it lives in: of its own where it has none yet.

    Its methods block, so that they belong into another thread than the loop's; in the loop's own
    they raise RuntimeError.
    """

    def __init__(self, engine: AsyncLLM) -> None:
        self._engine = engine
        handler = engine.output_handler
        if handler is not None:
            self._loop = handler.get_loop()
            return
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="midstream-vllm", daemon=True).start()

    @property
    def config(self) -> Any:
        """See `Engine.config`."""
        return self._engine.vllm_config

    def call(self, method: str, *arguments: Any) -> Any:
        """See `Engine.call`."""
        return self._wait(lambda: self._engine.collective_rpc(method, args=arguments))[0]

    def complete(self, asked: Sequence[Asked], cancelled: Callable[[], bool] | None) -> list[Any]:
        """See `Engine.complete`."""
        try:
            return self._wait(lambda: self._complete(asked, cancelled))
        except ExceptionGroup as group:  # the first failure ends the others
            raise group.exceptions[0] from None

    async def _complete(
        self, asked: Sequence[Asked], cancelled: Callable[[], bool] | None
    ) -> list[Any]:
        answers: list[Any] = [None] * len(asked)

        async def one(index: int) -> None:
            name, prompt, params = asked[index]
            told: Any = {"prompt_token_ids": prompt}
            # A task that is cancelled in here aborts its request.
            async for output in self._engine.generate(told, params, name):
                answers[index] = output.outputs[0]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(index)) for index in range(len(asked))]
            await finished_or_cancelled(tasks, cancelled)
        return answers

    def _wait(self, start: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            here = None
        if here is self._loop:
            raise RuntimeError(
                "this thread runs the engine's event loop, which would wait for itself: use "
                "another, as in `await asyncio.to_thread(run_segments, host, prompt, strategy)`"
            )
        return asyncio.run_coroutine_threadsafe(start(), self._loop).result()


def engine_of(llm: Any) -> Engine:
    """The engine behind `LLM` or `AsyncLLM`. Raises InputError for anything else."""
    if hasattr(llm, "llm_engine"):
        return OfflineEngine(llm)
    if hasattr(llm, "output_handler"):
        return AsyncEngine(llm)
    raise InputError("llm", type(llm).__name__, "vllm.LLM or vllm.v1.engine.async_llm.AsyncLLM")
