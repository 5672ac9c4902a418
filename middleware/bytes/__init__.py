"""Laws over bytes from a model over tokens: what comes next, how probable a text is, healing."""

from __future__ import annotations

from midstream.middleware.bytes.beam import Beam
from midstream.middleware.bytes.canonical import Canonical, Place, Undecidable
from midstream.middleware.bytes.law import ByteLaw
from midstream.middleware.bytes.model import ByteModel
from midstream.middleware.bytes.scoring import TextReport
from midstream.middleware.bytes.state import ByteState
from midstream.middleware.bytes.tree import RowsTree, Tree, TreeHost

__all__ = [
    "Beam",
    "ByteLaw",
    "ByteModel",
    "ByteState",
    "Canonical",
    "Place",
    "RowsTree",
    "TextReport",
    "Tree",
    "TreeHost",
    "Undecidable",
]
