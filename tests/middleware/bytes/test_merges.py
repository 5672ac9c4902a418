"""The pair rule against BPE itself, on random tables of merges."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from midstream.middleware.bytes.merges import Merges, derive
from midstream.middleware.bytes.neighbours import Neighbours

LETTERS = "abc"


def words(chance: random.Random, size: int) -> list[str]:
    """Letters, and words that are made of two earlier ones."""
    found = list(LETTERS)
    while len(found) < size:
        word = chance.choice(found) + chance.choice(found)
        if word not in found and len(word) <= 8:
            found.append(word)
    return found


def every_split(chance: random.Random, found: list[str]) -> tuple[dict, dict]:
    """tiktoken: any two that make a token, at its rank."""
    ranks, made = {}, {}
    for token, word in enumerate(found):
        for cut in range(1, len(word)):
            if word[:cut] in found and word[cut:] in found:
                key = found.index(word[:cut]) * len(found) + found.index(word[cut:])
                ranks[key] = made[key] = token
    return ranks, made


def scored(chance: random.Random, found: list[str]) -> tuple[dict, dict]:
    """SentencePiece: any two, in the order of scores that know nothing of the parts, some equal."""
    _, made = every_split(chance, found)
    score = [chance.randrange(len(found) // 2) for _ in found]
    return {key: score[token] for key, token in made.items()}, made


def listed(chance: random.Random, found: list[str]) -> tuple[dict, dict]:
    """A list of merges, each of its own rank, in any order, some left out."""
    _, made = every_split(chance, found)
    keys = [key for key in made if chance.random() < 0.8]
    chance.shuffle(keys)
    return {key: rank for rank, key in enumerate(keys)}, {key: made[key] for key in keys}


KINDS = [every_split, scored, listed]


def table(kind: Callable, seed: int, size: int = 14) -> Merges:
    chance = random.Random(seed)
    found = words(chance, size)
    ranks, made = kind(chance, found)
    base = {token: [LETTERS.index(letter) for letter in word] for token, word in enumerate(found)}
    return derive(size, ranks, made, base)


def stays(merges: Merges, tokens: list[int]) -> bool:
    symbols = [letter for token in tokens for letter in merges.base[token]]
    return merges.encode(symbols)[0] == tokens


@pytest.mark.parametrize("kind", KINDS)
def test_the_pair_rule_is_bpe(kind: Callable) -> None:
    pairs = valid = 0
    for seed in range(150):
        merges = table(kind, seed)
        neighbours = Neighbours(merges)
        reachable = np.flatnonzero(merges.reachable).tolist()
        for left in reachable:
            after = neighbours.after(left)
            assert not after[~merges.reachable].any()
            for right in reachable:
                truth = stays(merges, [left, right])
                assert neighbours.follows(left, right) == truth, (seed, left, right)
                assert after[right] == truth, (seed, left, right)
                pairs += 1
                valid += truth
    assert pairs > 9000 and 0.2 < valid / pairs < 0.99


@pytest.mark.parametrize("kind", KINDS)
def test_reachable_tokens_in_valid_pairs_are_just_what_bpe_makes(kind: Callable) -> None:
    agreed = 0
    for seed in range(60):
        chance = random.Random(seed)
        merges = table(kind, seed)
        neighbours = Neighbours(merges)
        for _ in range(60):
            tokens = [chance.randrange(merges.size) for _ in range(chance.randrange(2, 6))]
            rule = all(merges.reachable[tokens]) and all(
                neighbours.follows(left, right) for left, right in pairwise(tokens)
            )
            assert rule == stays(merges, tokens), (seed, tokens)
            agreed += rule
    assert agreed > 100


@pytest.mark.parametrize("kind", KINDS)
def test_halves_are_the_last_merge_and_levels_the_highest_rank(kind: Callable) -> None:
    for seed in range(40):
        merges = table(kind, seed)
        for token in np.flatnonzero(merges.reachable).tolist():
            if len(merges.base[token]) == 1:
                assert merges.level[token] == -1
                continue
            left, right = merges.halves[token].tolist()
            assert [*merges.base[left], *merges.base[right]] == list(merges.base[token])
            rank = merges.ranks[left * merges.size + right]
            assert merges.level[token] == max(rank, merges.level[left], merges.level[right])


def by_ranks_alone(merges: Merges, left: int, right: int) -> bool:
    """The rule for lists in which every merge comes after those of its parts."""
    limit = 1 << 60
    rank = [
        -1
        if merges.halves[token, 0] < 0
        else merges.ranks[int(merges.halves[token, 0] * merges.size + merges.halves[token, 1])]
        for token in range(merges.size)
    ]
    while True:
        if merges.ranks.get(left * merges.size + right, limit) < limit:
            return False
        if rank[left] > rank[right]:
            limit, left = rank[left], int(merges.halves[left, 1])
        elif rank[right] >= 0:
            limit, right = rank[right] + 1, int(merges.halves[right, 0])
        else:
            return True


@pytest.mark.parametrize("kind", [scored, listed])
def test_control_ranks_alone_fail_where_a_merge_comes_before_its_parts(kind: Callable) -> None:
    wrong = 0
    for seed in range(150):
        merges = table(kind, seed)
        reachable = np.flatnonzero(merges.reachable).tolist()
        wrong += sum(
            by_ranks_alone(merges, left, right) != stays(merges, [left, right])
            for left in reachable
            for right in reachable
        )
    assert wrong > 10
