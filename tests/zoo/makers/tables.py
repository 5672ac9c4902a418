"""Questions on a small table in the prompt, sorting of words, and SQL over a stated schema."""

from __future__ import annotations

from random import Random

from makers.item import Item
from makers.words import CITIES, COLOURS, FRUITS, ITEMS, NAMES, WORDS

_SUBJECTS = {
    "Prices": (FRUITS, "What does {} cost?\n"),
    "Stock": (ITEMS, "How many of {}?\n"),
    "Rooms": (NAMES, "Where is {}?\n"),
    "Teams": (CITIES, "Which team is from {}?\n"),
}
_TABLES = "staff users clients books films cars orders shops trips songs plants tools".split()
_TEXT_COLUMNS = ("name", "city", "colour")
_NUMBER_COLUMNS = "age price year size weight score rank".split()
_VALUES = {"name": NAMES, "city": CITIES, "colour": COLOURS}


def make_lookup(rng: Random) -> Item:
    """Three to six rows, one question; the answer is one of the values."""
    title = rng.choice(tuple(_SUBJECTS))
    keys_from, question = _SUBJECTS[title]
    keys = rng.sample(keys_from, rng.randint(3, 6))
    if title == "Rooms":
        values = [f"{rng.choice('ABCDEF')}{rng.randint(1, 99)}" for _ in keys]
    elif title == "Teams":
        values = rng.sample(COLOURS, len(keys))
    else:
        values = [str(value) for value in rng.sample(range(1, 1000), len(keys))]
    rows = "\n".join(f"{key}={value}" for key, value in zip(keys, values, strict=True))
    asked = rng.randrange(len(keys))
    prompt = f"{title}\n{rows}\n{question.format(keys[asked])}"
    choices = list(dict.fromkeys(values))
    return Item(
        "lookup", prompt, values[asked], f"lookup|{rows}|{keys[asked]}", {"choice": choices}
    )


def make_sorting(rng: Random) -> Item:
    """Three to five words in alphabetical order."""
    words = rng.sample(WORDS, rng.randint(3, 5))
    prompt = rng.choice(("Sort: {}\n", "Put in order: {}\n")).format(" ".join(words))
    key = f"sorting|{' '.join(words)}"
    return Item("sorting", prompt, " ".join(sorted(words)), key, {"regex": "[a-z]+( [a-z]+)*"})


def _condition(columns: list[str], rng: Random) -> tuple[str, str]:
    column = rng.choice(columns)
    if column in _NUMBER_COLUMNS:
        value = rng.randint(1, 99)
        words, sign = rng.choice((("over", ">"), ("under", "<"), ("equal to", "=")))
        return f"{column} {words} {value}", f"{column} {sign} {value}"
    text = rng.choice(_VALUES[column])
    return f"{column} {text}", f"{column} = '{text}'"


def make_sql(rng: Random) -> Item:
    """A schema of three to five columns, a wish in words, and the query."""
    table = rng.choice(_TABLES)
    columns = rng.sample(_TEXT_COLUMNS, rng.randint(1, 2))
    columns += rng.sample(_NUMBER_COLUMNS, rng.randint(2, 3))
    rng.shuffle(columns)
    number = rng.choice([column for column in columns if column in _NUMBER_COLUMNS])
    wish, query = rng.choice(
        (
            (f"the {columns[0]}", columns[0]),
            (f"the {columns[0]} and {columns[1]}", f"{columns[0]}, {columns[1]}"),
            ("the number of rows", "COUNT(*)"),
            (f"the largest {number}", f"MAX({number})"),
            (f"the mean {number}", f"AVG({number})"),
            ("everything", "*"),
        )
    )
    spoken, condition = _condition(columns, rng)
    words, answer = f"{wish} of {table}", f"SELECT {query} FROM {table}"
    if rng.random() < 0.8:
        words, answer = f"{words} with {spoken}", f"{answer} WHERE {condition}"
    if "(" not in query and rng.random() < 0.4:
        words, answer = f"{words} sorted by {number}", f"{answer} ORDER BY {number}"
    schema = f"{table}({', '.join(columns)})"
    form = rng.choice(("Schema {s}. SQL for {w}\n", "Given {s} write SQL: {w}\n"))
    regex = r"SELECT [^;]+ FROM [a-z]+( WHERE [^;]+)?( ORDER BY [a-z]+)?;"
    key = f"sql|{schema}|{answer}"
    return Item("sql", form.format(s=schema, w=words), f"{answer};", key, {"regex": regex})
