"""How many tokens it takes to finish a text, from every state of an automaton."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from midstream.middleware.constraints.automaton import DEAD, Automaton, distances
from midstream.middleware.constraints.token_trie import TokenTrie

MAX_WORK = 100_000_000
"""Work of the walks (see `Arrivals`): some seconds."""

MAX_EDGES = 20_000_000
"""Pairs of states that one token joins: under 500 MB."""

_CHUNK = 1_000_000
"""Pairs of a state and a node of the trie that are walked at a time."""


def byte_bound(automaton: Automaton, trie: TokenTrie) -> npt.NDArray[np.int32]:
    """The tokens to finish by single-byte tokens alone, int32 [S]; NEVER where these do not do."""
    root_children = slice(1, 1 + int(trie.children[0]))
    usable = np.zeros(automaton.table.shape[1], np.bool_)
    usable[trie.column[root_children][trie.token_count[root_children] > 0]] = True
    return automaton.steps_to_finish(usable)


def token_distances(
    automaton: Automaton, trie: TokenTrie, bound: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32] | None:
    """Least number of tokens to an accepting state, exact, int32 [S]; NEVER where none lead there.

    bound: `byte_bound`. None where it would take more than MAX_WORK or MAX_EDGES. Where one byte
    finishes, so does no less than one token; only the other states are walked.
    """
    size = automaton.accepting.size
    near = np.flatnonzero(bound == 1)
    sources, targets = [near], [np.full(near.size, np.argmax(automaton.accepting))]
    edges_left, work_left = MAX_EDGES - near.size, MAX_WORK
    for states in _chunks(automaton, trie, bound):
        arrivals = trie.arrivals(automaton.table, states)
        joined = np.unique(arrivals.origin * size + arrivals.state)
        work_left -= arrivals.work
        edges_left -= joined.size
        if work_left < 0 or edges_left < 0:
            return None
        sources.append(states[joined // size])
        targets.append(joined % size)
    return distances(np.concatenate(sources), np.concatenate(targets), automaton.accepting)


def _chunks(
    automaton: Automaton, trie: TokenTrie, bound: npt.NDArray[np.int32]
) -> Iterator[npt.NDArray[np.int64]]:
    """The states that one byte does not finish, in stretches that take about _CHUNK pairs."""
    states = np.flatnonzero(bound > 1)
    states = states[states != DEAD]
    first = slice(1, 1 + int(trie.children[0]))
    pairs_of = np.zeros(automaton.table.shape[1], np.int64)
    pairs_of[trie.column[first]] = 1 + trie.below[first]
    pairs = np.cumsum((automaton.table[states] != DEAD) @ pairs_of)
    begin = 0
    while begin < states.size:
        before = pairs[begin - 1] if begin else 0
        end = max(begin + 1, int(np.searchsorted(pairs, before + _CHUNK)))
        yield states[begin:end]
        begin = end
