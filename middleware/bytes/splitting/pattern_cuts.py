"""Pre-tokenizers that cut by a pattern."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from typing import NamedTuple, TypeAlias

from midstream.middleware.bytes.splitting.program import NO_ANSWERS, Program
from midstream.middleware.bytes.splitting.splitters import Step
from midstream.middleware.bytes.undecidable import Undecidable

_START, _RUN, _GAP = 0, 1, 2
_MOST_QUESTIONS = 4  # each doubles the ways of a step


Answers: TypeAlias = Mapping[int, bool]
"""Of each question (a look ahead), whether what follows matches."""


class _Guesses(NamedTuple):
    """What was guessed of the text to come.

    barred: threads of which none may ever match. wanted: of each of these sets one must.
    """

    barred: frozenset[int]
    wanted: frozenset[frozenset[int]]

    def answered(self, answers: Answers) -> _Guesses:
        """With the answers to questions that are asked here."""
        no = [question for question, answer in answers.items() if not answer]
        yes = [frozenset([question]) for question, answer in answers.items() if answer]
        return _Guesses(self.barred.union(no), self.wanted.union(yes))

    def after(self, program: Program, taken: int, answers: Answers) -> _Guesses | None:
        """What is left of them behind a character; None where one is wrong."""
        ready, broken = program.ready(self.barred, taken, answers)
        if broken:
            return None
        wanted = []
        for threads in self.wanted:
            stand, matched = program.ready(threads, taken)
            if not matched:
                wanted.append(frozenset(program.after(stand, taken)))
        if not all(wanted):
            return None
        return _Guesses(frozenset(program.after(ready, taken)), frozenset(wanted))

    def hold(self, program: Program, end: int, answers: Answers) -> bool:
        """Whether they are right if nothing follows."""
        return not program.ready(self.barred, end, answers)[1] and all(
            program.ready(threads, end)[1] for threads in self.wanted
        )


class _Key(NamedTuple):
    phase: int
    guesses: _Guesses
    threads: tuple[int, ...]


_NONE = _Guesses(frozenset(), frozenset())


class PatternCuts:
    """Each match of a pattern is a piece, and what is between two matches is one.

    A state holds the threads of the piece at hand in the order of preference, and the guesses that
    led there: threads that are preferred to a match that was taken, or that begin where no match
    was to begin, must never match; looks ahead were to be right or wrong.

    end: the number of classes. gaps: whether there may be text between two matches.
    """

    def __init__(self, program: Program, end: int, *, gaps: bool) -> None:
        self.program = program
        self.end = 1 << end
        self.gaps = gaps
        self._questions = program.questions()
        self._answers = _all_answers(self._questions)
        places = [1 << kind for kind in range(end + 1)]
        if any(
            program.ready([program.start], at, told)[1] for at in places for told in self._answers
        ):
            raise Undecidable("a pre-tokenizer with a pattern that matches nothing at all")
        self._keys = [_Key(_START, _NONE, ())]
        self._numbers = {self._keys[0]: 0}

    def step(self, state: int, kind: int) -> tuple[Step, ...]:
        """The ways to cut: go on with the piece, a match ends here, no match begins here."""
        key = self._keys[state]
        found: list[tuple[bool, _Key]] = []
        for answers in self._answers:
            found += self._ways(key, 1 << kind, answers)
        possible = [(cut, key) for cut, key in found if key.threads or key.phase == _GAP]
        return tuple(dict.fromkeys([(cut, self._number(key)) for cut, key in possible]))

    def ends(self, state: int) -> bool:
        """Whether the guesses hold if nothing follows."""
        phase, guesses, threads = self._keys[state]
        program, end = self.program, self.end
        answers = {question: program.ready([question], end)[1] for question in self._questions}
        return guesses.hold(program, end, answers) and (
            phase != _RUN or program.ready(threads, end, answers)[1]
        )

    def _ways(self, key: _Key, taken: int, answers: Answers) -> Iterator[tuple[bool, _Key]]:
        program = self.program
        guesses = key.guesses.answered(answers).after(program, taken, answers)
        if guesses is None:
            return
        first, _ = program.ready([program.start], taken, answers)
        opened = tuple(program.after(first, taken))
        cut, matched = True, True
        if key.phase == _RUN:
            ready, matched = program.ready(key.threads, taken, answers)
            onward = tuple(program.after(ready, taken))
            yield False, _Key(_RUN, guesses, onward)
            guesses = guesses._replace(barred=guesses.barred.union(onward))
        elif key.phase == _GAP:
            cut = False
        if matched:
            yield True, _Key(_RUN, guesses, opened)
            if self.gaps:
                barred = guesses.barred.union(opened)
                yield cut, _Key(_GAP, guesses._replace(barred=barred), ())

    def _number(self, key: _Key) -> int:
        number = self._numbers.setdefault(key, len(self._keys))
        if number == len(self._keys):
            self._keys.append(key)
        return number


def _all_answers(questions: list[int]) -> list[dict[int, bool]]:
    if len(questions) > _MOST_QUESTIONS:
        raise Undecidable(f"a pre-tokenizer that looks ahead in {len(questions)} places")
    choices = product((True, False), repeat=len(questions))
    return [dict(zip(questions, answers, strict=True)) for answers in choices]


class AheadCuts:
    """A cut before every character from which on the text matches a pattern, or does not.

    end: the number of classes.
    """

    def __init__(self, program: Program, end: int) -> None:
        self.program = program
        self.end = 1 << end
        (self._question,) = program.questions()
        self._wants = program.wants[program.start]
        self._keys: list[_Guesses | None] = [None, _NONE]
        self._numbers = {_NONE: 1}

    def step(self, state: int, kind: int) -> tuple[Step, ...]:
        """A cut and none, each with what it says of the text to come."""
        key = self._keys[state]
        if key is None:
            return ((True, 1),)
        ways = []
        for answer in (True, False):
            answers = {self._question: answer}
            guesses = key.answered(answers).after(self.program, 1 << kind, answers)
            if guesses is not None:
                ways.append((answer == self._wants, self._number(guesses)))
        return tuple(ways)

    def ends(self, state: int) -> bool:
        """Whether the guesses hold if nothing follows."""
        key = self._keys[state]
        return key is None or key.hold(self.program, self.end, NO_ANSWERS)

    def _number(self, key: _Guesses) -> int:
        number = self._numbers.setdefault(key, len(self._keys))
        if number == len(self._keys):
            self._keys.append(key)
        return number
