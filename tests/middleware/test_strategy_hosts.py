"""What a host cannot do is refused, and the page shows the same table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from midstream.middleware.errors import StrategyError
from midstream.middleware.strategy import Strategy
from midstream.middleware.strategy_hosts import CANNOT, HOSTS, table

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategy.md"

AFTER_MASK = {"top_k": 5, "truncation": "after_mask"}
REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("law.truncation", {"sampler": {"awrs": {}}, "law": AFTER_MASK}),
    ("law.temperature", {"law": {"temperature": 0}}),
    ("smc.particles", {"smc": {"particles": 2}}),
    ("healing", {"healing": {}}),
]


def test_the_page_shows_the_table() -> None:
    assert table() in PAGE.read_text(encoding="utf-8")
    assert table().count("\n") == len(CANNOT) + 1


def test_every_row_of_the_table_is_tried_below() -> None:
    assert [field for field, _ in REFUSED] == [row.field for row in CANNOT]


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("index", range(len(CANNOT)))
def test_a_row_refuses_on_its_hosts_alone(host: str, index: int) -> None:
    row = CANNOT[index]
    field, fields = REFUSED[index]
    strategy = Strategy(**fields)
    if host not in row.hosts:
        strategy.validate_for(host)
        return
    with pytest.raises(StrategyError) as caught:
        strategy.validate_for(host)
    assert caught.value.argument == field
    assert row.why in str(caught.value)
    assert host in str(caught.value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"sampler": "mask", "law": AFTER_MASK},
        {"sampler": {"awrs": {}}, "law": {"truncation": "after_mask"}},
        {"sampler": {"awrs": {}}, "law": {"top_k": 5, "truncation": "target"}},
    ],
)
def test_what_every_host_can_do(fields: dict[str, Any]) -> None:
    for host in HOSTS:
        Strategy(**fields).validate_for(host)


def test_an_unknown_host_is_an_error() -> None:
    with pytest.raises(StrategyError, match=r"^host: got abacus; accepted: one of transformers"):
        Strategy().validate_for("abacus")
