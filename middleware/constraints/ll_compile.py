"""From the text of a grammar to a llguidance matcher, within bounds on time and memory."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from midstream.middleware.constraints.ll_engine import one_line
from midstream.middleware.constraints.ll_tokenizer import engine_tokens
from midstream.middleware.errors import ConstraintError
from midstream.middleware.vocabulary import Vocabulary

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLParserLimits

T = TypeVar("T")

LIMITS: dict[str, Any] = {
    "max_items_in_row": 2_000,
    "initial_lexer_fuel": 1_000_000,
    "step_lexer_fuel": 200_000,  # some milliseconds a mask
    "step_max_items": 100_000,
    "max_lexer_states": 50_000,  # 2 kB each
    "max_grammar_size": 500_000,
    "precompute_large_lexemes": False,  # it walks the whole vocabulary before the first token
    "verbose_errors": False,
}
"""llguidance's `LLParserLimits`. Those on steps end a text, the others are a ConstraintError."""

LONGEST_TEXT = 4_000_000
"""Characters of a schema or grammar, to be checked by those who take it."""

TRIAL_SECONDS = 3
"""Of processor time for a trial, and one more by the clock. Compiling takes as long again."""

TRIAL_BYTES = 1 << 30

_TAME_TEXT = 4_000
_COMPILED = b"compiled "
_SIGNALS = {name: getattr(signal, name, 1000) for name in ("SIGXCPU", "SIGKILL", "SIGSEGV")}
_STACK_BYTES = 64 << 20


def compile_grammar(
    lark: str, vocabulary: Vocabulary, *, argument: str, got: object, accepted: str, wild: bool
) -> tuple[LLMatcher, Callable[[], LLMatcher]]:
    """A matcher at its start for a grammar in llguidance's Lark syntax, and what makes another.

    argument, got, accepted: for the ConstraintError that says why not. wild: whether a short text
    may stand for a large grammar. Those and long ones are tried in a child process first, which is
    killed at TRIAL_SECONDS or TRIAL_BYTES: llguidance bounds much but not all (a `minItems` of 1e9
    takes 8 GB, a chain of references its stack).
    """

    def refused(reason: str) -> ConstraintError:
        return ConstraintError(argument, got, f"{accepted} ({reason})")

    # `no_forcing`: else masks hold canonical tokens alone where bytes are forced.
    text = lark + '\n%llguidance {"no_forcing": true}\n'
    if wild or len(lark) > _TAME_TEXT:
        failure = _trial(text)
        if failure is not None:
            raise refused(failure)
    tokenizer = engine_tokens(vocabulary).tokenizer

    def again() -> LLMatcher:
        return _on_a_large_stack(lambda: _matcher(tokenizer, text))

    matcher = again()
    if matcher.is_error():
        raise refused(one_line(matcher.get_error()))
    return matcher, again


def _matcher(tokenizer: Any, text: str) -> LLMatcher:
    from llguidance import LLMatcher

    return LLMatcher(tokenizer, text, log_level=0, limits=_limits())


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits

    return LLParserLimits(**LIMITS)


def _on_a_large_stack(work: Callable[[], T]) -> T:
    """Run on a thread of its own: grammars are compiled by recursion, and stacks may be small."""
    results: list[T] = []
    failures: list[BaseException] = []

    def body() -> None:
        try:
            results.append(work())
        except BaseException as error:
            failures.append(error)

    before = threading.stack_size(_STACK_BYTES)
    try:
        thread = threading.Thread(target=body, name="midstream-compile")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _trial(text: str) -> str | None:
    """Compile in a child process. None where it can be done, else why not."""
    import llguidance

    if not sys.executable:
        return "large grammars are tried in a child process, and no Python executable is known"
    packages = str(Path(llguidance.__file__).parent.parent)
    order = [packages, text, LIMITS, TRIAL_BYTES, TRIAL_SECONDS, _STACK_BYTES]
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _CHILD],
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=TRIAL_SECONDS + 1,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"not compiled within {TRIAL_SECONDS + 1} s"
    except OSError as error:
        return f"large grammars are tried in a child process, and none could be started: {error}"
    if child.stdout.startswith(_COMPILED):
        return one_line(child.stdout.removeprefix(_COMPILED).decode(errors="replace")) or None
    if -child.returncode in (_SIGNALS["SIGXCPU"], _SIGNALS["SIGKILL"]):
        return f"not compiled within {TRIAL_SECONDS} s of processor time"
    if -child.returncode == _SIGNALS["SIGSEGV"]:
        return "nested or chained too deeply"
    return f"not compiled within {TRIAL_BYTES >> 20} MiB of memory"


_CHILD = """
import json, sys, threading
packages, text, limits, memory, seconds, stack = json.load(sys.stdin)
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError, ValueError):
    pass
sys.path.append(packages)
def body():
    from llguidance import LLMatcher, LLParserLimits, LLTokenizer
    matcher = LLMatcher(LLTokenizer("byte"), text, log_level=0, limits=LLParserLimits(**limits))
    print("compiled", matcher.get_error())
threading.stack_size(stack)
thread = threading.Thread(target=body)
thread.start()
thread.join()
"""
