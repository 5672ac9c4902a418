"""SMILES strings of small molecules: counting atoms, telling whole strings from broken ones."""

from __future__ import annotations

import re
from random import Random

from makers.item import Item

_VALENCE = {"C": 4, "N": 3, "O": 2, "S": 2, "F": 1, "Cl": 1, "Br": 1}
_ATOMS = re.compile(r"Cl|Br|[CNOSF]")
_INNER = "CCCCCCNOOS"
_ENDS = ("C", "C", "C", "N", "O", "F", "Cl", "Br")


def _branch(rng: Random) -> str:
    return rng.choice(("(C)", "(O)", "(=O)", "(N)", "(F)", "(Cl)", "(CC)", "(C)(C)"))


def smiles(rng: Random) -> str:
    """A molecule of two to eleven chain atoms, branched, with at most one ring, valences kept."""
    length = rng.randint(2, 8)
    ring = rng.random() < 0.35
    if ring:
        size = rng.randint(3, 6)
        body = ["C1"] + [rng.choice("CCCCNO") for _ in range(size - 2)] + ["C1"]
        tail = smiles_chain(rng, rng.randint(0, 3)) if rng.random() < 0.7 else ""
        return "".join(body) + tail
    return smiles_chain(rng, length)


def smiles_chain(rng: Random, length: int) -> str:
    """A chain of `length` atoms: only a carbon takes a branch or a double bond."""
    parts: list[str] = []
    open_double = False
    for index in range(length):
        last = index == length - 1
        atom = rng.choice(_ENDS) if last else rng.choice(_INNER)
        if open_double:
            atom = "C" if not last else rng.choice("CO")
        free = _VALENCE[atom] - (2 if open_double else 1) - (0 if last else 1)
        text = ("=" if open_double else "") + atom
        open_double = False
        if atom == "C" and free >= 2 and rng.random() < 0.3:
            text += _branch(rng)
        elif atom == "C" and free >= 1 and not last and rng.random() < 0.15:
            open_double = True
        parts.append(text)
    return "".join(parts)


def is_whole(text: str) -> bool:
    """Whether parentheses and ring digits close and no atom carries more bonds than it has."""
    if text.count("(") != text.count(")") or text.count("1") % 2:
        return False
    bonds: list[float] = []
    atoms: list[str] = []
    stack: list[int] = []
    ring, current, order = -1, -1, 1
    for token in re.findall(r"Cl|Br|[CNOSF]|.", text):
        if token in _VALENCE:
            atoms.append(token)
            bonds.append(0)
            if current >= 0:
                bonds[current] += order
                bonds[-1] += order
            current, order = len(atoms) - 1, 1
        elif token == "=":
            order = 2
        elif token == "(":
            stack.append(current)
        elif token == ")":
            if not stack:
                return False
            current = stack.pop()
        elif token == "1" and current >= 0:
            if ring >= 0:
                bonds[ring] += 1
                bonds[current] += 1
                ring = -1
            else:
                ring = current
        else:
            return False
    return bool(atoms) and all(b <= _VALENCE[a] for a, b in zip(atoms, bonds, strict=True))


def _broken(text: str, rng: Random) -> str:
    kind = rng.randrange(3)
    if kind == 0:
        return text + "("
    if kind == 1:
        return f"C1{text}" if "1" not in text else text.replace("1", "", 1)
    return rng.choice(("F", "Cl", "Br")) + "(C)" + text


def make_smiles(rng: Random) -> Item:
    """Atoms of one element counted, or a string judged whole or broken."""
    text = smiles(rng)
    if rng.random() < 0.6:
        element = rng.choice(("C", "C", "N", "O", "Cl"))
        count = _ATOMS.findall(text).count(element)
        prompt = rng.choice(
            (f"How many {element} in {text}?\n", f"Count {element} atoms: {text}\n")
        )
        key = f"smiles|count|{element}|{text}"
        return Item("smiles", prompt, str(count), key, {"regex": r"\d{1,2}"})
    if rng.random() < 0.5:
        text = _broken(text, rng)
    answer = "yes" if is_whole(text) else "no"
    prompt = f"Is {text} a valid SMILES?\n"
    return Item("smiles", prompt, answer, f"smiles|valid|{text}", {"choice": ["yes", "no"]})
