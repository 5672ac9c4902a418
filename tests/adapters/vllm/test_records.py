"""Records: overwritten, bounded, and summed over what the response holds."""

from __future__ import annotations

import math
import threading

import pytest

from midstream.adapters.vllm.records import Record, Records
from midstream.adapters.vllm.weights import RecordsLostError, by_sequence, weigh


def record(token: int, log_weight: float = -1.0, status: str = "running") -> Record:
    return Record(token, log_weight, status, 2)  # type: ignore[arg-type]


def test_writing_again_overwrites() -> None:
    records = Records()
    for token in (3, 4):
        records.write([(("a", 7, 0), record(token))])
    found = records.read("a")
    assert found == {(7, 0): record(4)}
    assert len(records) == 1
    assert records.read("b") is None


def test_two_writers_of_the_same_records() -> None:
    """Both draw the same, as two ranks or a retry beside its original do: nothing counts twice,
    and none of what a reader sees in between is of neither.
    """
    records, told = Records(), []
    places = [("a", 7, position) for position in range(50)]
    written = [record(position, -0.25 * position) for position in range(50)]
    whole = {place[1:]: each for place, each in zip(places, written, strict=True)}

    def write() -> None:
        for _ in range(40):
            for place, each in zip(places, written, strict=True):
                records.write([(place, each)])
                told.append(dict(records.read("a") or {}).items() <= whole.items())

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 2 * 40 * 50
    assert all(told)
    assert records.read("a") == whole
    assert len(records) == 50


def test_the_oldest_go_first() -> None:
    records = Records(keys=2, records=3)
    for key in ("a", "b", "c"):
        records.write([((key, 0, 0), record(1))])
    assert records.read("a") is None
    records.write([(("c", 0, position), record(1)) for position in (1, 2)])
    assert records.read("b") is None
    assert records.read("c") is not None
    assert len(records) == 3


def test_entries_expire() -> None:
    now = [0.0]
    records = Records(seconds=10.0, clock=lambda: now[0])
    records.write([(("a", 0, 0), record(1))])
    now[0] = 11.0
    assert records.read("a") is None
    assert len(records) == 0


def test_a_weight_is_the_sum_over_the_response() -> None:
    rows = [(5, p, 10 + p, -0.5 * (p + 1), "running", 1, "", 0) for p in range(4)]
    found = by_sequence(rows)[5]
    text = weigh([10, 11, 12], found, "length")
    assert text.log_weight == -3.0
    assert text.status == "length"
    assert text.checks == 3
    assert weigh([10, 11], found, "stop").status == "cancelled"
    assert weigh([], found, "abort").log_weight == 0.0


def test_the_last_record_tells_how_a_text_ended() -> None:
    found = {0: record(1), 1: record(0, status="finished")}
    assert weigh([1, 0], found, "stop").status == "finished"
    dead = {0: Record(0, -math.inf, "dead", 0, "nothing is allowed")}
    text = weigh([0], dead, "stop")
    assert (text.status, text.log_weight, text.reason) == ("dead", -math.inf, "nothing is allowed")


@pytest.mark.parametrize("tokens", [[1, 2], [9]])
def test_a_weight_is_never_guessed(tokens: list[int]) -> None:
    with pytest.raises(RecordsLostError):
        weigh(tokens, {0: record(1)}, "stop")
