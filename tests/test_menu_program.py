"""A menu's expressions: what they mean, held against an evaluator of one event at a time, and what is wrong."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.menu.grammar import parse
from stages.menu.program import Available, compiled
from streamer.block import Columns

AVAILABLE = Available(
    {"run": "run", "event": "event", "nPhoton": "nPhoton", "nJet": "nJet", "Event_nnScore": "Event_nnScore"},
    {
        "Photon": {"pt": "Photon_pt", "eta": "Photon_eta", "egScore": "Photon_egScore"},
        "Jet": {"pt": "Jet_pt", "seedRow": "Jet_seedRow"},
    },
)
DTYPES = {"run": "u4", "event": "u8", "Event_nnScore": "f4", "Jet_seedRow": "i2"}

values = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0, 40.1])
Event = dict[str, Any]


@st.composite
def an_event(draw: st.DrawFn) -> Event:
    """Columns of one event: `Photon_pt` is a list, `run` a number."""
    out: Event = {"Event_nnScore": draw(st.one_of(values, st.just(math.nan)))}
    out |= {name: draw(st.integers(0, 3)) for name in ("run", "event")}
    for collection, members in AVAILABLE.members.items():
        n = out[f"n{collection}"] = draw(st.integers(0, 3))
        for column in members.values():
            numbers = st.integers(-2, 3).map(float) if column == "Jet_seedRow" else values
            out[column] = draw(st.lists(numbers, min_size=n, max_size=n))
    return out


def block_of(events: list[Event]) -> Columns:
    out: Columns = {}
    for name in events[0]:
        found = [event[name] for event in events]
        kind = "i4" if name.startswith("n") else DTYPES.get(name, "f4")
        out[name] = np.array([*itertools.chain(*found)] if isinstance(found[0], list) else found, kind)
    return out


def numbers(names: list[str]) -> st.SearchStrategy[str]:
    leaf = st.one_of(values.map(lambda v: f"{v:g}" if v >= 0 else f"(-{-v:g})"), st.sampled_from(names))
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from("+-*/"), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            inner.map(lambda x: f"-{x}"),
            inner.map(lambda x: f"abs({x})"),
            st.tuples(inner, inner).map(lambda t: f"max({t[0]}, {t[1]})"),
        ),
        max_leaves=4,
    )


def conditions(names: list[str], more: st.SearchStrategy[str] | None = None) -> st.SearchStrategy[str]:
    one = numbers(names)
    compared = st.tuples(one, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), one).map(" ".join)
    chained = st.tuples(one, one, one).map(lambda t: f"{t[0]} < {t[1]} <= {t[2]}")
    return st.recursive(
        st.one_of(compared, chained, *([more] if more is not None else [])),
        lambda inner: st.one_of(
            st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
            inner.map(lambda x: f"not ({x})"),
        ),
        max_leaves=4,
    )


counted = st.one_of(
    *(
        st.tuples(st.sampled_from(["", "1 ", "2 ", "3 "]), st.just(of), conditions([*members])).map(
            lambda t: f"({t[0]}{t[1]}: {t[2]})"
        )
        for of, members in AVAILABLE.members.items()
    )
)
expressions = conditions(["run", "nPhoton", "Event_nnScore"], st.one_of(counted, st.just("true")))


class Plain:
    """What a line of Python makes of an expression, entry by entry."""

    def __init__(self, event: Event, done: dict[str, bool]) -> None:
        self.event, self.done = event, done

    def value(self, tree: Any, at: tuple[str, int] | None = None) -> Any:
        kind = type(tree).__name__
        if kind == "Number":
            return np.float64(tree.value)
        if kind == "Name":
            if at is None:
                return self.done[tree.text] if tree.text in self.done else np.float64(self.event[tree.text])
            return np.float64(np.float32(self.event[f"{at[0]}_{tree.text}"][at[1]]))
        if kind == "Counted":
            n = self.event[f"n{tree.collection}"]
            return sum(bool(self.value(tree.so, (tree.collection, i))) for i in range(n)) >= tree.n
        of = [self.value(one, at) for one in tree.of]
        with np.errstate(all="ignore"):
            match tree.what:
                case "true":
                    return True
                case "not":
                    return not of[0]
                case "and":
                    return all(of)
                case "or":
                    return any(of)
                case "neg":
                    return -of[0]
                case "abs()":
                    return abs(of[0])
                case "max()":
                    return np.maximum(*of)
        a, b = of
        with np.errstate(all="ignore"):
            table = {"+": a + b, "-": a - b, "*": a * b, "/": a / b, "<": a < b, "<=": a <= b}
            return {**table, ">": a > b, ">=": a >= b, "==": a == b, "!=": a != b}[tree.what]


@given(st.lists(expressions, min_size=1, max_size=5), st.lists(an_event(), min_size=1, max_size=6))
def test_a_block_of_events_gets_the_answers_of_each_event_alone(texts: list[str], events: list[Event]) -> None:
    paths = {f"P{i}": text for i, text in enumerate(texts)}
    paths |= {"Both": " and ".join(paths), "Any": f"not Both or {' or '.join(paths)}"}
    program, problems = compiled(paths, AVAILABLE)
    assert program is not None, problems
    found = program(block_of(events), len(events))
    for k, event in enumerate(events):
        event = {**event, "Event_nnScore": np.float32(event["Event_nnScore"])}
        done: dict[str, bool] = {}
        for row, (name, text) in enumerate(paths.items()):
            done[name] = bool(Plain(event, done).value(parse(text)))
            assert found[row, k] == done[name], text


def test_paths_may_stand_before_those_that_they_name() -> None:
    program, _ = compiled({"Not": "not All", "All": "true", "Same": "All"}, AVAILABLE)
    assert program is not None
    assert program({}, 2).tolist() == [[0, 0], [1, 1], [1, 1]]


def test_what_is_equal_is_computed_once() -> None:
    paths = {f"P{i}": "(Photon: pt > 30 and abs(eta) < 1.4) and nJet > 0" for i in range(9)}
    one, _ = compiled({"P0": paths["P0"]}, AVAILABLE)
    nine, _ = compiled(paths, AVAILABLE)
    assert one is not None and nine is not None  # noqa: PT018
    assert nine.n_steps == one.n_steps == 7
    assert nine.columns == {"Photon_pt", "Photon_eta", "nJet"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty; write 'true' for a path that passes everything"),
        ("Photon: ptt > 4", "there is no column 'ptt' of Photon; did you mean 'pt'?"),
        ("Photon: mass > 4", "there is no column 'mass' of Photon; there are pt, eta, egScore"),
        ("Foton: pt > 4", "there is no collection 'Foton'; did you mean 'Photon'?"),
        ("nPhotons > 1", "there is no path or column 'nPhotons'; did you mean 'nPhoton'?"),
        ("Good_v2", "there is no path or column 'Good_v2'; did you mean 'Good_v1'?"),
        ("nPhoton", "'nPhoton' is a number where a condition is needed, such as 'nPhoton' > 0"),
        ("Photon: pt + eta", "'pt' + 'eta' is a number where a condition is needed, such as 'pt' + 'eta' > 0"),
        ("(Photon: pt > 3) > 2", "'Photon: ...' is a condition where a number is needed"),
        ("Good_v1 + 1 > 2", "'Good_v1' is a condition where a number is needed"),
        ("0 Photon: pt > 3", "0 Photon: say how many at least, 1 or more"),
        ("1.5 Photon: pt > 3", "1.5 Photon: say how many at least, 1 or more"),
        ("Photon: (Jet: pt > 3)", "'Jet: ...' stands within 'Photon: ...'; join them with 'and' in parentheses"),
        ("Photon: log(pt) > 3", "there is no function 'log()'; there are abs(), sqrt(), min(), max()"),
        ("Photon: abs(pt, eta) > 3", "'abs()' takes 1, not 2"),
        ("Photon: pt > 3 and", "ends too early, behind 'Photon: pt > 3 and'"),
        ("Photon: pt = 3", "'= 3': equality is written '=='"),
        ("Photon: pt > 3 && eta < 1", "'&& eta < 1': write 'and', 'or', 'not'"),
        ("Good_v1 and Photon: pt > 3", "': pt > 3': a term such as 'Photon: pt > 40' stands alone, or in parentheses"),
        ("__import__('os')", "\"__import__('os')\" cannot stand there (letter 1)"),
        ("nJet > 1 nJet", "'nJet' cannot stand there (letter 10)"),
        ("not " * 990 + "true", "its parts lie too deep within each other"),
        ("true or " * 990 + "true", "is 7924 letters long; at most 4000 are read"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(text: str, why: str) -> None:
    program, problems = compiled({"Good_v1": "true", "Bad_v1": text}, AVAILABLE)
    assert program is None
    assert len(problems) == 1
    assert problems[0].startswith("path Bad_v1: ")
    assert problems[0].endswith(why)


def test_circles_of_paths_are_told() -> None:
    paths = {"Start": "A", "A": "nJet > 1 or B", "B": "not C", "C": "A", "Own": "true"}
    assert compiled(paths, AVAILABLE)[1] == ["paths name each other in a circle: A -> B -> C -> A"]
    assert compiled({"A": "A"}, AVAILABLE)[1] == ["paths name each other in a circle: A -> A"]


def test_events_without_members_and_blocks_without_any() -> None:
    program, _ = compiled({"A": "Photon: pt > 1", "B": "not (Jet: pt > 1)"}, AVAILABLE)
    assert program is not None
    empty = {"nPhoton": np.zeros(3, "i4"), "nJet": np.zeros(3, "i4")}
    columns: Columns = {**empty, "Photon_pt": np.zeros(0, "f4"), "Jet_pt": np.zeros(0, "f4")}
    assert program(columns, 3).tolist() == [[0, 0, 0], [1, 1, 1]]
