"""Dates: rewritten to ISO form, the next day, the day before, the month by name."""

from __future__ import annotations

from datetime import date, timedelta
from random import Random

from makers.item import Item
from makers.words import MONTHS

_FIRST = date(1950, 1, 1)
_SPAN_DAYS = (date(2049, 12, 31) - _FIRST).days
_ISO = {"regex": r"\d{4}-\d{2}-\d{2}"}
_FORMS = (
    "{day} {month_name} {year}",
    "{month_name} {day}, {year}",
    "{day:02d}.{month:02d}.{year}",
    "{day}/{month}/{year}",
    "{year}, {month_name} {day}",
)


def _spoken(when: date, rng: Random) -> str:
    return rng.choice(_FORMS).format(
        day=when.day, month=when.month, year=when.year, month_name=MONTHS[when.month - 1]
    )


def make_date(rng: Random) -> Item:
    """One of four questions on a day between 1950 and 2049."""
    kind = rng.choice(("iso", "iso", "next", "previous", "month"))
    when = _FIRST + timedelta(days=rng.randint(1, _SPAN_DAYS - 1))
    if kind in ("next", "previous") and rng.random() < 0.25:
        when = when.replace(day=1) - timedelta(days=1 if kind == "next" else 0)
    key = f"date|{kind}|{when.isoformat()}"
    if kind == "iso":
        form = rng.choice(("Write as ISO date: {}\n", "ISO date of {}\n"))
        return Item("date", form.format(_spoken(when, rng)), when.isoformat(), key, _ISO)
    if kind == "month":
        answer = MONTHS[when.month - 1]
        prompt = f"Name the month of {when.isoformat()}\n"
        return Item("date", prompt, answer, key, {"choice": list(MONTHS)})
    step = 1 if kind == "next" else -1
    form = rng.choice(("Day after {}\n", "What date follows {}?\n"))
    if kind == "previous":
        form = rng.choice(("Day before {}\n", "What date precedes {}?\n"))
    answer = (when + timedelta(days=step)).isoformat()
    return Item("date", form.format(when.isoformat()), answer, key, _ISO)
