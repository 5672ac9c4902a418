"""Sums, differences, small products, and unit conversions."""

from __future__ import annotations

from random import Random

from makers.item import Item

_INTEGER = {"regex": r"-?(0|[1-9]\d*)"}
_FORMS = {
    "+": ("Compute {a}+{b}\n", "What is {a} plus {b}?\n", "Add {a} and {b}\n"),
    "-": ("Compute {a}-{b}\n", "What is {a} minus {b}?\n", "Take {b} from {a}\n"),
    "*": ("Compute {a}*{b}\n", "What is {a} times {b}?\n", "Multiply {a} by {b}\n"),
}
_UNITS = (
    ("km", "m", 1000),
    ("m", "cm", 100),
    ("cm", "mm", 10),
    ("kg", "g", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("weeks", "days", 7),
    ("years", "months", 12),
    ("euros", "cents", 100),
    ("days", "hours", 24),
)


def make_arithmetic(rng: Random) -> Item:
    """Two numbers below 100 (one time in four below 1,000), or a product with a digit."""
    operation = rng.choice("++--*")
    top = 999 if rng.random() < 0.25 else 99
    a, b = rng.randint(0, top), rng.randint(0, top)
    if operation == "*":
        a, b = rng.randint(0, 20), rng.randint(0, 9)
    value = {"+": a + b, "-": a - b, "*": a * b}[operation]
    prompt = rng.choice(_FORMS[operation]).format(a=a, b=b)
    return Item("arithmetic", prompt, str(value), f"arithmetic|{a}{operation}{b}", _INTEGER)


def make_units(rng: Random) -> Item:
    """A whole number of one unit in another, smaller or larger, without remainder."""
    large, small, factor = rng.choice(_UNITS)
    count = rng.randint(1, 300)
    if rng.random() < 0.5:
        question, answer = f"{count} {large} in {small}", count * factor
    else:
        question, answer = f"{count * factor} {small} in {large}", count
    prompt = rng.choice(("Convert {}\n", "How much is {}?\n")).format(question)
    return Item("units", prompt, str(answer), f"units|{question}", _INTEGER)
