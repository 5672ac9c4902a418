"""The demonstration: its numbers are what they claim to be, and it shows what it is for."""

from __future__ import annotations

import functools
import io
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import chi2

import midstream.adapters.cli.demo_command as demo_command
from midstream.adapters.cli.model import load_model
from midstream.adapters.demo.measure import Measured, expected_distance, total_variation
from midstream.adapters.demo.plot import COLOURS, write_plot
from midstream.adapters.demo.rejection import UNFINISHED, sample_texts
from midstream.adapters.demo.report import data, page
from midstream.adapters.demo.run import STAGES, run_demo
from midstream.adapters.demo.sampling import Ask, by_calls, in_process
from midstream.adapters.demo.server import sidecar_client
from midstream.adapters.demo.tasks import TASKS, Task, in_italy, is_multiple, may_become_multiple
from midstream.adapters.sidecar.client import Client, Outcome
from midstream.middleware.errors import ConstraintError
from midstream.middleware.sampling import AWRS
from midstream.middleware.vocabulary import Vocabulary

PARTICLES, SAMPLES = 300, 5_000


class Counting:
    """A client that keeps what it was asked for."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.constraints: list[Any] = []

    def generate(self, prompt: Any, **asked: Any) -> Outcome:
        self.constraints.append(asked["constraint"])
        return self.client.generate(prompt, **asked)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Of a sidecar with the embedded model."""
    with sidecar_client() as client:
        yield client


@pytest.fixture(scope="module")
def measured(client: Client) -> list[Measured]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the command does
    model = load_model("embedded")
    stages: list[tuple[int, str]] = []
    counting: Any = Counting(client)
    found = run_demo(
        model.host,
        model.encode,
        counting,
        seed=0,
        particles=PARTICLES,
        samples=SAMPLES,
        on_stage=lambda done, what: stages.append((done, what)),
    )
    torch.set_num_threads(threads)
    assert [done for done, _ in stages] == list(range(STAGES))
    calls = [task.constraint for task in TASKS if task.is_data for _ in ("masked", "AWRS-SMC")]
    assert counting.constraints == calls
    return found


def test_weights_are_near_the_truth_where_masks_are_far(measured: list[Measured]) -> None:
    for each in measured:
        unconstrained, masked, weighted = (method.distance for method in each.methods)
        assert unconstrained == pytest.approx(1.0 - each.acceptance, abs=1e-9)
        assert masked > 3 * each.chance
        assert masked > 3 * weighted
        assert weighted < 4 * each.chance


def test_the_reference_has_enough_samples(measured: list[Measured]) -> None:
    for each in measured:
        assert each.accepted >= 200
        assert sum(each.reference.values()) == pytest.approx(1.0)
        assert all(each.task.accepts(text) for text in each.reference)
        assert 0.0 < each.reference_error < each.chance < 0.15


def test_the_evidence_is_the_share_of_free_samples_that_are_kept(measured: list[Measured]) -> None:
    for each in measured:
        assert each.evidence == pytest.approx(each.acceptance, rel=0.35)


@pytest.mark.parametrize("task", [task for task in TASKS if task.is_data], ids=lambda t: t.name)
def test_calls_draw_what_runs_in_process_draw(client: Client, task: Task) -> None:
    model = load_model("embedded")
    ask = Ask(task, model.encode(task.prompt), 100, seed=4)
    call, direct = by_calls(client, ask), in_process(model.host, ask)
    for sampler, occurrence, threshold in ((task.masking, 0, 0.0), (AWRS(), 1, 0.5)):
        told = call(sampler, occurrence, threshold)
        expected = direct(sampler, occurrence, threshold)
        # not to the last digit: a server's rejection has a bound, which hopeless particles reach
        assert total_variation(told.posterior(), expected.posterior()) < 1e-6
        assert told.log_evidence == pytest.approx(expected.log_evidence, abs=1e-6)
    other = call(AWRS(), 2, 0.5)  # negative control: another occurrence draws others
    assert total_variation(other.posterior(), expected.posterior()) > 1e-3


def test_what_is_code_is_not_called(client: Client) -> None:
    (task,) = (task for task in TASKS if not task.is_data)
    with pytest.raises(ConstraintError):
        by_calls(client, Ask(task, [1], 2, seed=0))(AWRS(), 0, 0.5)


def test_the_report_and_the_data_hold_the_same_numbers(measured: list[Measured]) -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(page(measured, ascii_only=True))
    text = console.export_text()
    value = json.loads(json.dumps(data(measured, seed=0, seconds=1.0), allow_nan=False))
    assert list(value) == ["seed", "seconds", "tasks"]
    for task, each in zip(value["tasks"], measured, strict=True):
        assert task["name"] == each.task.name
        for method in each.methods:
            assert task["distances"][method.name] == method.distance
            assert f"{method.distance:.3f}" in text
        assert f"{each.accepted:,} of {SAMPLES:,} free samples" in text
        for law in (each.reference, each.methods[1].law):
            assert max(law, key=law.__getitem__) in text
    assert "calls of a client to a sidecar" in " ".join(text.split())
    assert "#" in text
    assert text.isascii()


def test_the_picture_shows_every_method(measured: list[Measured], tmp_path: Path) -> None:
    from matplotlib.colors import to_rgb
    from matplotlib.image import imread

    path = tmp_path / "demo.png"
    write_plot(measured, path)
    picture = imread(path)[:, :, :3]
    assert picture.shape[0] > 600
    assert picture.shape[1] > 1000
    for colour in COLOURS:
        inside = np.abs(picture - np.array(to_rgb(colour))).max(axis=2) < 0.01
        assert inside.sum() > 500


def test_the_command_prints_json_alone_and_writes_the_picture(
    midstream: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    small = functools.partial(run_demo, particles=40, samples=1500)
    monkeypatch.setattr(demo_command, "run_demo", small)
    path = tmp_path / "demo.png"
    called = midstream("demo", "--json", "--seed", 3, "--plot", path)
    assert (called.code, called.err) == (0, "")
    value = json.loads(called.out, parse_constant=pytest.fail)
    assert value["seed"] == 3
    assert [task["name"] for task in value["tasks"]] == [task.name for task in TASKS]
    assert path.read_bytes().startswith(b"\x89PNG")
    again = json.loads(midstream("demo", "--json", "--seed", 3).out)
    assert again["tasks"] == value["tasks"]
    shown = midstream("demo", "--seed", 3)
    assert (shown.code, shown.err) == (0, "")
    assert "Why masking is wrong" in shown.out
    distance = value["tasks"][0]["distances"]["masked"]
    assert f"{distance:.3f}" in shown.out


@dataclass
class _Table:
    """A model by a table: the logits after each prefix; a `Host` and its `Rows` in one."""

    vocabulary: Vocabulary
    tables: dict[tuple[int, ...], np.ndarray]
    prefixes: list[tuple[int, ...]]
    forwarded: int = 1

    def start(self, prompts: Sequence[Sequence[int]]) -> _Table:
        self.prefixes = [() for _ in prompts]
        return self

    @property
    def logits(self) -> np.ndarray:
        return np.array([self.tables[prefix] for prefix in self.prefixes])

    def advance(self, parents: Sequence[int], tokens: Sequence[int]) -> _Table:
        old = self.prefixes
        self.prefixes = [(*old[p], t) for p, t in zip(parents, tokens, strict=True)]
        self.forwarded += len(tokens)
        return self


def test_free_samples_have_the_models_law() -> None:
    """Chi-square over all texts of at most two letters, false alarms 1e-5."""
    vocabulary = Vocabulary([b"a", b"b", b"ab", b"", b"", b""], eos_ids=[3, 4], special_ids=[5])
    generator = np.random.default_rng(5)
    tables = {(): generator.normal(size=6)}
    tables |= {(first,): generator.normal(size=6) for first in range(3)}
    exact: dict[bytes, float] = {UNFINISHED: 0.0}

    def visit(prefix: tuple[int, ...], mass: float) -> None:
        p = np.exp(tables[prefix]) / np.exp(tables[prefix]).sum()
        text = vocabulary.decode(prefix)
        exact[text] = exact.get(text, 0.0) + mass * (p[3] + p[4])
        exact[UNFINISHED] += mass * p[5]
        for token in range(3):
            if len(prefix) == 1:
                exact[UNFINISHED] += mass * p[token]
            else:
                visit((*prefix, token), mass * p[token])

    visit((), 1.0)
    assert sum(exact.values()) == pytest.approx(1.0)
    host = _Table(vocabulary, tables, [])
    samples = 50_000
    counts = sample_texts(
        host,
        [0],
        samples=samples,
        max_new_tokens=2,
        generator=np.random.Generator(np.random.Philox(key=1)),
    )
    assert counts.total() == samples
    assert counts.keys() <= exact.keys()
    statistic = sum((counts[t] - samples * p) ** 2 / (samples * p) for t, p in exact.items())
    assert statistic < chi2.isf(1e-5, len(exact) - 1)
    assert host.forwarded == 4  # the prompt, and each of three prefixes once


def test_the_tests_of_answers() -> None:
    assert in_italy('{"city":"Rome","country":"Italy"}')
    for text in (
        '{"city":"Rome","country":"France"}',
        '{"city":"Rome", "country":"Italy"}',
        '{"country":"Italy","city":"Rome"}',
        '{"city":3,"country":"Italy"}',
        '{"city":"Rome","country":"Italy"',
        "[]",
    ):
        assert not in_italy(text)
    numbers = [str(n) for n in range(1000) if is_multiple(str(n))]
    assert numbers == ["17", "34", "51", "68", "85"]
    assert not is_multiple("٣٤")
    beginnings = [
        text for text in (b"", b"3", b"2", b"34", b"35", b"340") if may_become_multiple(text)
    ]
    assert beginnings == [b"", b"3", b"34"]


def test_the_tests_of_answers_agree_with_the_constraints() -> None:
    """A constraint accepts a text if and only if the test made without midstream does."""
    vocabulary = Vocabulary([bytes([b]) for b in range(256)] + [b""], eos_ids=[256])
    texts = [
        '{"city":"Rome","country":"Italy"}',
        '{"city":"Rome","country":"Spain"}',
        '{"city":"","country":"Italy"}',
        '{"city":"Rome","country":"Italy"} ',
        "Rome",
        "San Marino",
        "San Francisco",
        "17",
        "18",
        "170",
    ]
    for task in TASKS:
        matcher = task.constraint.compile(vocabulary)
        for text in texts:
            state: Any = matcher.start()
            for byte in text.encode():
                state = matcher.advance(state, byte) if state is not None else None
            accepted = state is not None and matcher.accepts(state)
            assert accepted == task.accepts(text), (task.name, text)


def test_distances() -> None:
    p = {"a": 0.5, "b": 0.5}
    assert total_variation(p, p) == 0.0
    assert total_variation(p, {"c": 1.0}) == 1.0
    assert total_variation(p, {"a": 0.8, "b": 0.1, "c": 0.1}) == pytest.approx(0.4)


def test_the_distance_that_chance_alone_makes() -> None:
    """Against the mean over 4,000 samples, whose standard error is under 1 %."""
    law = np.array([0.5, 0.25, 0.15, 0.07, 0.03])
    generator = np.random.default_rng(2)
    shares = generator.multinomial(400, law, size=4000) / 400
    mean = 0.5 * np.abs(shares - law).sum(axis=1).mean()
    expected = expected_distance(dict(zip("abcde", law.tolist(), strict=True)), 1 / 400)
    assert expected == pytest.approx(mean, rel=0.03)
    assert math.isclose(expected_distance({"a": 1.0}, 1.0), 0.0)
