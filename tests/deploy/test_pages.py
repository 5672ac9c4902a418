"""docs/sidecar.md tells the limits, the metrics, the events and the options that there are."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

from midstream.adapters.sidecar.limits import Limits
from midstream.adapters.sidecar.metrics import Metrics
from midstream.middleware.draw import Status
from midstream.proto.v1 import decoding_pb2, status_pb2

PAGE = (Path(__file__).resolve().parents[2] / "docs/sidecar.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_limits_are_those_of_the_server() -> None:
    told = {name.strip("`"): float(value.replace(",", "")) for name, value, _ in rows("Limits")}
    assert told == asdict(Limits())


def test_the_metrics_are_those_of_the_server() -> None:
    told = set(re.findall(r"midstream_[a-z_]+", " ".join(row[0] for row in rows("Life"))))
    families = [f for f in Metrics().registry.collect() if f.name.startswith("midstream")]
    assert told == {f.name + ("_total" if f.type == "counter" else "") for f in families}


def test_the_statuses_and_events_are_those_of_the_protos() -> None:
    names = [
        name.removeprefix("SEQUENCE_STATUS_").lower() for name in status_pb2.SequenceStatus.keys()
    ]
    told = [row[0].strip("`") for row in rows("Statuses")]
    assert told == [name for name in names if name != "unspecified"]
    assert set(told) == set(Status.__args__)
    events = [row[0].strip("`") for row in rows("Generate")]
    assert events == [field.name for field in decoding_pb2.GenerateEvent.DESCRIPTOR.fields]
