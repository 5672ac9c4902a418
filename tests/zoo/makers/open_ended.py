"""Prompts without one right answer: the law of the answers is known and uneven.

Many answers share a likely beginning and part later, and in the records the second field depends
on the first: a constraint on what comes later then contradicts what token masking chose before.
"""

from __future__ import annotations

import re
from random import Random

from makers.item import Item
from makers.json_records import compact
from makers.molecules import smiles
from makers.words import FRUITS

CITY_LAW = {
    "San Francisco": 0.26,
    "San Diego": 0.12,
    "San Antonio": 0.03,
    "San Marino": 0.01,
    "Santa Fe": 0.02,
    "New York": 0.18,
    "New Orleans": 0.04,
    "New Delhi": 0.02,
    "Paris": 0.12,
    "Parma": 0.02,
    "Portland": 0.06,
    "Porto": 0.03,
    "Rome": 0.05,
    "Rotterdam": 0.04,
}
DRINK_LAW = {
    "coffee with milk": 0.3,
    "coffee with sugar": 0.15,
    "coffee without milk": 0.05,
    "coffee with oat milk": 0.05,
    "tea with lemon": 0.15,
    "tea with milk": 0.1,
    "tea without sugar": 0.05,
    "hot chocolate": 0.1,
    "hot water": 0.02,
    "water": 0.03,
}
WEEKDAY_LAW = {
    "Monday": 0.05,
    "Tuesday": 0.05,
    "Wednesday": 0.05,
    "Thursday": 0.1,
    "Friday": 0.25,
    "Saturday": 0.35,
    "Sunday": 0.15,
}
PLACE_LAW = {
    ("Paris", "France"): 0.4,
    ("Lyon", "France"): 0.1,
    ("Berlin", "Germany"): 0.2,
    ("Bonn", "Germany"): 0.05,
    ("Madrid", "Spain"): 0.12,
    ("Rome", "Italy"): 0.05,
    ("Milan", "Italy"): 0.03,
    ("Turin", "Italy"): 0.02,
    ("Lima", "Peru"): 0.02,
    ("Oslo", "Norway"): 0.01,
}
JOB_LAW = {
    ("student", (18, 25)): 0.5,
    ("teacher", (28, 60)): 0.3,
    ("pilot", (30, 55)): 0.15,
    ("judge", (50, 75)): 0.05,
}
FORMS = {
    "city": "Guest {} picks a city:\n",
    "drink": "Guest {} orders a drink:\n",
    "weekday": "Guest {} picks a weekday:\n",
    "number": "Guest {} picks a number:\n",
    "place": "Guest {} describes a place as JSON:\n",
    "worker": "Guest {} describes a worker as JSON:\n",
    "fruit": "Guest {} picks a fruit:\n",
    "molecule": "Guest {} draws a molecule:\n",
}

# A regular expression for each kind that leaves a small part of the law, often behind a likely
# beginning: most of the mass of "San" or of "coffee with" is ruled out only later.
CONDITIONS = {
    "city": "San (Antonio|Marino)|Rome|Porto",
    "drink": "(coffee|tea) without (milk|sugar)|hot water",
    "weekday": "[A-Z][a-z]{5}",
    "number": "[1-9]0",
    "place": r'\{"city":"[A-Za-z ]+","country":"Italy"\}',
    "worker": r'\{"job":"[a-z]+","age":([56][0-9]|7[0-9])\}',
    "fruit": "[a-z]+e",
    "molecule": r"[A-Za-z()=1]*S[A-Za-z()=1]*",
}


def number_law() -> dict[str, float]:
    """Numbers 10 to 99, each as probable as 1 over its first digit, times 3 where it ends in 7."""
    weights = {n: (3.0 if n % 10 == 7 else 1.0) / (n // 10) for n in range(10, 100)}
    total = sum(weights.values())
    return {str(n): weight / total for n, weight in weights.items()}


def fruit_law() -> dict[str, float]:
    """Zipf's law over the list of fruits."""
    weights = [1.0 / rank for rank in range(1, len(FRUITS) + 1)]
    return {name: w / sum(weights) for name, w in zip(FRUITS, weights, strict=True)}


def answer_law(kind: str) -> dict[str, float] | None:
    """P(answer) of a kind of open prompt; None for molecules, whose law is a grammar's."""
    if kind == "place":
        return {
            compact({"city": city, "country": country}): p
            for (city, country), p in PLACE_LAW.items()
        }
    if kind == "worker":
        return {
            compact({"job": job, "age": age}): p / (high - low + 1)
            for (job, (low, high)), p in JOB_LAW.items()
            for age in range(low, high + 1)
        }
    laws = {
        "city": CITY_LAW,
        "drink": DRINK_LAW,
        "weekday": WEEKDAY_LAW,
        "number": number_law(),
        "fruit": fruit_law(),
    }
    return laws.get(kind)


def condition_mass(kind: str) -> float | None:
    """P(the answer meets its kind's condition); None where the law is not listed."""
    law = answer_law(kind)
    if law is None:
        return None
    return sum(p for answer, p in law.items() if re.fullmatch(CONDITIONS[kind], answer))


_LAWS = {kind: answer_law(kind) for kind in FORMS}
_TABLES = {kind: (list(law), list(law.values())) for kind, law in _LAWS.items() if law}


def make_open(rng: Random) -> Item:
    """A numbered guest's free choice; the number says nothing about the answer."""
    kind = rng.choice(tuple(FORMS))
    prompt = FORMS[kind].format(rng.randint(1, 9999))
    if kind == "molecule":
        return Item("open", prompt, smiles(rng), prompt)
    answers, weights = _TABLES[kind]
    return Item("open", prompt, rng.choices(answers, weights)[0], prompt)
