"""A parsed regular expression as text again, for an engine that knows neither flags nor edges."""

from __future__ import annotations

from dataclasses import replace

from midstream.middleware.constraints.regex_nodes import (
    Concat,
    Edge,
    Either,
    Literal,
    Node,
    OneOf,
    Repeat,
)


class InnerEdgeError(Exception):
    """An edge of the text is asserted where it does not always hold."""


def plain_source(node: Node) -> str:
    """A pattern of the same language under full match, without comments, flags in force, or edges.

    Raises InnerEdgeError for an edge that is not at the edge of the pattern.
    """
    return _written(_without_edges(node, first=True, last=True))


def _without_edges(node: Node, *, first: bool, last: bool) -> Node:
    """`node` without the assertions that hold where it is the first or the last of the whole."""
    match node:
        case Edge(at_end):
            return Concat(()) if (last if at_end else first) else node
        case Either(branches):
            kept = (_without_edges(branch, first=first, last=last) for branch in branches)
            return Either(tuple(kept))
        case Concat(parts) if parts:
            ends = {0, len(parts) - 1}
            return Concat(
                tuple(
                    _without_edges(part, first=first and i == 0, last=last and i == len(parts) - 1)
                    if i in ends
                    else part
                    for i, part in enumerate(parts)
                )
            )
        case Repeat(inner, _, most) if most == 1:
            return replace(node, inner=_without_edges(inner, first=first, last=last))
    return node


def _written(node: Node) -> str:
    match node:
        case Literal(utf8):
            return f"\\x{{{ord(utf8.decode()):X}}}"
        case OneOf(source):
            return source
        case Concat(parts):
            return "".join(map(_written, parts))
        case Either(branches):
            return f"(?:{'|'.join(map(_written, branches))})"
        case Repeat(inner, least, most):
            return f"(?:{_written(inner)}){{{least},{'' if most is None else most}}}"
        case Edge():
            raise InnerEdgeError
