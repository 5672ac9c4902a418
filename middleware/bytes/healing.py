"""Exact healing: the end of a prompt read as bytes, and one of its token strings drawn.

A prompt stands for its bytes. Of the token strings that spell them, and may go on over their end,
one is drawn with its exact probability; ordinary tokens follow it. So the text has the law
P(text | it begins with the prompt's bytes), of token strings that begin with an element of the
prompt's cover (Vieira et al., arXiv 2412.03719, conditional token generation). The user's bytes
stay as they are; what the element spells beyond them is the first of the answer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from midstream.middleware.bytes.beam import Beam, BeamText
from midstream.middleware.bytes.beyond import Beyond
from midstream.middleware.bytes.canonical import Canonical
from midstream.middleware.bytes.context import room_behind
from midstream.middleware.bytes.element_choice import allowed_part, most_probable
from midstream.middleware.bytes.elements import STAYS, draw_element, log_cover_mass
from midstream.middleware.bytes.heads import AnyTokens, Heads
from midstream.middleware.bytes.law import Standing, Target
from midstream.middleware.bytes.lawful import LawfulHost, RowsOf, truncated
from midstream.middleware.bytes.reading import Branches, Reader, Task
from midstream.middleware.bytes.splits import Split, Splitter
from midstream.middleware.bytes.tail import byte_sorted
from midstream.middleware.host import Host
from midstream.middleware.law import PLAIN, Law
from midstream.middleware.matcher import Matcher, State
from midstream.middleware.random import Source, Stream, StreamSource, sequence_of

HealingMethod = Literal["off", "whole", "cover", "beam"]
"""off: not asked for. whole: the prompt's text ends where its tokens end, whatever follows.
cover, beam: how the token strings were found."""


@dataclass(frozen=True, slots=True)
class Healed:
    """A prompt whose end was drawn again.

    token_ids: what the model goes on from. overshoot: what they spell beyond the prompt's bytes:
        the first bytes of the answer.
    kept: how many of the first ids were fixed. log_cover: log of the probability, given these,
        that what follows them begins with the prompt's other bytes: of the token strings that
        count. log_weight: log of the share of it that the constraint leaves, 0 without one; of the
        draw T: E[w 1{T}] = P(T | the cover) allowed(T). log_p: of the one that was drawn.
    log_pruned: log of a bound of the mass that a beam left out of `log_cover`.
    state: of the matcher, after the overshoot. None without one.
    method: how; target: which token strings count.
    status: "running"; "dead" where none of positive probability is allowed: then `token_ids` is the
        prompt, log_weight is -inf, and `reason` says why.
    """

    token_ids: tuple[int, ...]
    overshoot: bytes
    kept: int
    log_cover: float
    log_weight: float
    log_p: float
    log_pruned: float
    state: State
    method: HealingMethod
    target: Target
    status: Literal["running", "dead"] = "running"
    reason: str = ""


class Healer:
    """Draws token strings for the ends of prompts, on a host that shows its logits.

    tokenizer: the host's, for its added tokens and for what it would itself make of a text; a
        Vocabulary will do where `canonical` is given or the target is "all".
    target: "canonical", the token strings that the tokenizer would make: all of a text's, whatever
        tokens it came in. "all", every token string of the prompt's end, by a beam: those before
        stay as they came.
    beam: of "all", and of texts that "canonical" does not cover.
    law: temperature and truncation of each row. At temperature 0 the most probable token string is
        taken. truncation "after_mask" leaves the drawing here as without it (lossy, as always).
    before: what is done to the model's rows before that.

    A tokenizer for which it cannot be decided what it makes is served by "all";
    `splitter.undecided` says why. Healed is what stands behind the last special or added token of a
    prompt; where it has none, its first id stays. A text of more than `READ_BYTES` is read from
    there on, behind its own ids, if these are what the tokenizer makes.
    """

    def __init__(
        self,
        host: Host,
        tokenizer: Any,
        *,
        target: Target = "canonical",
        beam: Beam | None = None,
        canonical: Canonical | None = None,
        law: Law = PLAIN,
        before: RowsOf | None = None,
    ) -> None:
        self.splitter = Splitter(tokenizer, host.vocabulary, target=target, canonical=canonical)
        self.vocabulary = host.vocabulary
        self._sorted = byte_sorted(host.vocabulary)
        self._beam = beam if beam is not None else Beam()
        self._any = AnyTokens(host.vocabulary)
        self._law = law
        cuts = law.truncates and law.truncation == "target"
        rows_of = truncated(law, before) if cuts else before
        self._host = host if rows_of is None else LawfulHost(host, rows_of)
        self._inverse = 1.0 if cuts else law.inverse_temperature

    def heal(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        seed: int = 0,
        sequences: Sequence[int] | None = None,
        matchers: Sequence[Matcher] | None = None,
        heal: bool | Sequence[bool] = True,
    ) -> list[Healed]:
        """Draw the end of each prompt. Read together; each as it would be alone.

        sequences: of the random numbers; None: by the prompts (`sequence_of`), equal ones apart.
        matchers: of the bytes behind each prompt. heal: whether to, for all or for each.
        """
        if sequences is None:
            given = [tuple(prompt) for prompt in prompts]
            sequences = [sequence_of(ids, given[:i].count(ids)) for i, ids in enumerate(given)]
        wanted = [heal] * len(prompts) if isinstance(heal, bool) else list(heal)
        splits = [
            self.splitter.split(prompt) if on else Split(tuple(prompt), tuple(prompt), b"")
            for prompt, on in zip(prompts, wanted, strict=True)
        ]
        sources = [healing_source(seed, sequence) for sequence in sequences]
        found = self.draw(splits, sources, matchers)
        rest = zip(found, prompts, wanted, strict=True)
        return [stays(prompt, "off", one.state) if not on else one for one, prompt, on in rest]

    def draw(
        self,
        splits: Sequence[Split],
        sources: Sequence[Source],
        matchers: Sequence[Matcher] | None = None,
    ) -> list[Healed]:
        """One element of the cover of each text, with its share of what is allowed."""
        matching = [None] * len(splits) if matchers is None else list(matchers)
        asked = [i for i, split in enumerate(splits) if not split.whole]
        found: dict[int, Healed] = {}
        if asked:
            reader = Reader(self._host, [splits[i].kept for i in asked])
            tasks = [
                self._drawn(splits[i], k, reader.first[k], sources[i], matching[i])
                for k, i in enumerate(asked)
            ]
            found = dict(zip(asked, reader.run(tasks), strict=True))
        for i, split in enumerate(splits):
            if i not in found:
                matcher = matching[i]
                state = None if matcher is None else matcher.start()
                found[i] = stays(split.kept, "whole", state)
        return [found[i] for i in range(len(splits))]

    def _drawn(
        self, split: Split, root: int, logits: Any, source: Source, matcher: Matcher | None
    ) -> Task[Healed]:
        standing, path, log_pruned = yield from self._read(split, root, logits)
        beyond = None if matcher is None else Beyond(matcher)
        log_cover = log_weight = log_cover_mass(standing, self._sorted)
        if beyond is not None:
            known, inverse = self._sorted, self._inverse
            standing = [allowed_part(each, beyond, known, inverse) for each in standing]
            log_weight = log_cover_mass(standing, self._sorted)
        if self._law.temperature == 0:
            drawn = most_probable(standing, self._sorted)
        else:
            drawn = draw_element(standing, self._sorted, source)
        if drawn is None:
            return self._dead(split, matcher, log_cover)
        head, token = drawn
        ids, log_p, overshoot = [*split.fixed, *path(head.path)], head.log_p, b""
        if token != STAYS:
            ids.append(token)
            log_p += head.row.log_p(token)
            overshoot = self.vocabulary.token_bytes[token][head.written :]
        return Healed(
            tuple(ids),
            overshoot,
            len(split.kept),
            log_cover,
            log_weight - log_cover,
            log_p,
            log_pruned,
            None if beyond is None else beyond.state_after(overshoot),
            "beam" if split.heads is None else "cover",
            "all" if split.heads is None else "canonical",
        )

    def _read(
        self, split: Split, root: int, logits: Any
    ) -> Task[tuple[list[Standing], Any, float]]:
        """The heads of a text, where their tokens are found, and what was left out."""
        heads = split.heads
        if heads is None:
            beamed = BeamText(
                self._any,
                self._sorted,
                self._beam,
                root=root,
                logits=logits,
                inverse_temperature=self._inverse,
                longest=room_behind(self._host, len(split.kept)),
            )
            yield from beamed.feed(split.text)
            return beamed.standing(), beamed.path, beamed.log_pruned
        standing = yield from self._standing(heads, split.cut, root, logits)
        return standing, heads.path, -math.inf

    def _standing(self, heads: Heads, cut: int, root: int, logits: Any) -> Task[list[Standing]]:
        """The heads of a canonical text, read from a node that all of them share."""
        places = self.splitter.canonical
        assert places is not None
        nodes = [head.node for head in heads.live]
        masks = {node: places.mask(heads.place[node]) for node in nodes}
        branches = Branches(
            heads.parent,
            heads.token,
            root=root,
            logits=logits,
            vocabulary=self._sorted,
            mask=None,
            inverse_temperature=self._inverse,
        )
        branches.node, branches.log_p, branches.rows = {cut: root}, {cut: 0.0}, {}
        branches.set_row(cut, logits, masks.get(cut))
        yield from branches.read(nodes, masks)
        length = len(heads.text)
        return [
            Standing(
                head.node,
                length - heads.offset[head.node],
                head.trie,
                branches.log_p[head.node],
                branches.rows[head.node],
                head.trie == 0 and places.may_end(heads.place[head.node]),
            )
            for head in heads.live
        ]

    def _dead(self, split: Split, matcher: Matcher | None, log_cover: float) -> Healed:
        why = "no token string of positive probability spells the end of the prompt"
        if matcher is not None:
            why += " and goes on as the constraint wants"
        own = split.heads is None
        return Healed(
            split.prompt,
            b"",
            len(split.kept),
            log_cover,
            -math.inf,
            -math.inf,
            -math.inf,
            None,
            "beam" if own else "cover",
            "all" if own else "canonical",
            "dead",
            why,
        )


def healing_source(seed: int, sequence: int) -> Source:
    """Random numbers of a sequence's healing, apart from those of its tokens."""
    return StreamSource(Stream(seed, sequence_of((-2, sequence))))


def stays(prompt: Sequence[int], method: HealingMethod, state: State) -> Healed:
    """A prompt that is left as it came."""
    ids = tuple(prompt)
    return Healed(ids, b"", len(ids), 0.0, 0.0, 0.0, -math.inf, state, method, "canonical")
