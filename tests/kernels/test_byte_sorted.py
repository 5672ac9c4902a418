"""The byte-sorted vocabulary against a scan of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from midstream.kernels.byte_sorted import ByteSortedVocabulary

# Few letters, so that prefixes are shared; 0xff, which has no successor, and 0 among them.
TOKENS = st.lists(
    st.lists(st.sampled_from([0, 97, 98, 255]), max_size=5).map(bytes), min_size=1, max_size=40
)


@given(TOKENS, st.data())
@settings(max_examples=150, deadline=None)
def test_every_prefix_is_a_node(token_bytes: list[bytes], data: st.DataObject) -> None:
    special = [t for t, spelling in enumerate(token_bytes) if not spelling]
    eos = data.draw(st.lists(st.sampled_from(special), unique=True)) if special else []
    vocabulary = ByteSortedVocabulary(token_bytes, eos_ids=eos)
    prefixes = {spelling[:i] for spelling in token_bytes for i in range(len(spelling) + 1)}
    nodes = {prefix: vocabulary.node(prefix) for prefix in prefixes | {b""}}
    assert sorted(nodes.values()) == list(range(vocabulary.low.size))
    for prefix, node in nodes.items():
        low, high = vocabulary.range_of(prefix)
        begin = [t for t, spelling in enumerate(token_bytes) if spelling.startswith(prefix)]
        begin = [t for t in begin if token_bytes[t]]
        assert sorted(vocabulary.order[low:high].tolist()) == begin
        equal = [t for t in begin if token_bytes[t] == prefix]
        assert vocabulary.order[low : vocabulary.ends[node]].tolist() == equal
        children = slice(vocabulary.first_child[node], vocabulary.first_child[node + 1])
        following = sorted({token_bytes[t][len(prefix)] for t in begin if t not in equal})
        assert vocabulary.byte[children].tolist() == following
        for byte in range(256):
            expected = nodes.get(prefix + bytes([byte]), -1)
            assert vocabulary.child(node, byte) == expected
    ordinary, rest = vocabulary.spelled, vocabulary.spelled + vocabulary.ending
    assert vocabulary.order[ordinary:rest].tolist() == sorted(eos)
    assert vocabulary.order[rest:].tolist() == [t for t in special if t not in eos]
    assert sorted(vocabulary.order.tolist()) == list(range(len(token_bytes)))


def test_what_no_token_begins_with() -> None:
    vocabulary = ByteSortedVocabulary([b"ab", b"", b"abc"])
    assert vocabulary.node(b"x") == -1
    assert vocabulary.node(b"abcd") == -1
    assert vocabulary.child(-1, 97) == -1
    assert vocabulary.range_of(b"b") == (0, 0)
    assert vocabulary.range_of(b"") == (0, 2)
    assert vocabulary.range_of(b"abc") == (1, 2)


def test_special_tokens_alone() -> None:
    vocabulary = ByteSortedVocabulary([b"", b""], eos_ids=[1])
    assert vocabulary.order.tolist() == [1, 0]
    assert (vocabulary.spelled, vocabulary.ending, len(vocabulary)) == (0, 1, 2)
    assert vocabulary.range_of(b"") == (0, 0)


def test_a_long_token_costs_its_own_nodes_alone() -> None:
    vocabulary = ByteSortedVocabulary([b"a" * 5000, b"a" * 2, b"b"])
    assert vocabulary.low.size == 5002
    assert vocabulary.node(b"a" * 5000) == vocabulary.low.size - 1
    assert np.diff(vocabulary.first_child).sum() == 5001


@pytest.mark.parametrize(
    ("token_bytes", "eos_ids", "message"),
    [
        ([], [], "token_bytes: got no tokens"),
        ([b"a", "b"], [], r"token_bytes\[1\]: got 'b'"),
        ([b"a", b""], [2], "eos_ids: got 2; accepted: ids from 0 to 1"),
        ([b"a", b""], [-1], "eos_ids: got -1"),
        ([b"a", b""], [0], 'eos_ids: got 0; accepted: ids .* whose bytes are b""'),
    ],
)
def test_wrong_vocabularies_are_named(
    token_bytes: Sequence[bytes], eos_ids: list[int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ByteSortedVocabulary(token_bytes, eos_ids=eos_ids)
