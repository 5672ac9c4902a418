"""Write the held-out suite: questions with exact answers, and open prompts with known laws.

`python tests/zoo/make_suite.py` rewrites tests/zoo/tasks; the same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random

from corpus import MAKERS, draw_item
from makers.item import Item, is_held_out
from makers.open_ended import CONDITIONS, FORMS, answer_law, condition_mass

SUITE = Path(__file__).resolve().parent / "tasks"


def task_lines(task: str, seed: int, count: int) -> list[str]:
    """Held-out items of one maker, every prompt once."""
    rng = Random(f"suite:{seed}:{task}")
    items: dict[str, Item] = {}
    while len(items) < count:
        item = draw_item(task, rng, held_out=True)
        items.setdefault(item.prompt, item)
    return [
        json.dumps(
            {
                "task": item.task,
                "prompt": item.prompt,
                "answer": item.answer,
                "key": item.key,
                "constraint": item.constraint,
            },
            ensure_ascii=False,
        )
        for item in items.values()
    ]


def open_lines(seed: int, count: int) -> list[str]:
    """Held-out open prompts: no answer, a condition on it, and the condition's mass by the law."""
    rng = Random(f"suite:{seed}:open")
    lines = []
    for kind, form in FORMS.items():
        mass = condition_mass(kind)
        prompts: dict[str, None] = {}
        while len(prompts) < count:
            prompt = form.format(rng.randint(1, 9999))
            if is_held_out(prompt):
                prompts[prompt] = None
        for prompt in prompts:
            lines.append(
                json.dumps(
                    {
                        "task": "open",
                        "kind": kind,
                        "prompt": prompt,
                        "key": prompt,
                        "constraint": {"regex": CONDITIONS[kind]},
                        "mass": None if mass is None else round(mass, 9),
                    },
                    ensure_ascii=False,
                )
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=SUITE)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=200, help="items of a task")
    parser.add_argument("--open-count", type=int, default=25, help="items of an open kind")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for task in MAKERS:
        if task == "open":
            lines = open_lines(options.seed, options.open_count)
        else:
            lines = task_lines(task, options.seed, options.count)
        path = options.output / f"{task}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path.name}: {len(lines)} items")
    laws = {kind: law for kind in FORMS if (law := answer_law(kind)) is not None}
    text = json.dumps(laws, indent=1, ensure_ascii=False)
    (options.output / "open_laws.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
