"""The configuration: what is told of a wrong one, and that a printed one reads back as it was."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from stages.config import Config
from streamer.config import (
    CoreConfig,
    FeedConfig,
    HopConfig,
    PositiveSeconds,
    Seconds,
    Section,
    load,
    parse_set,
    to_toml,
)
from streamer.errors import UsageError


class Nozzle(Section):
    """One of several things of a kind."""

    size: float = 1.0
    label: str = ""


class Toy(Section):
    """A section with a value of every kind."""

    name: str = "plain"
    """A text."""
    folder: Path = Path("out")
    files: tuple[str, ...] = ()
    numbers: tuple[float, ...] = (0.5,)
    kind: Literal["a", "b"] = "a"
    wait: Seconds = 0.005
    other: Path | None = None
    flag: bool = False
    words: dict[str, str] = {}  # noqa: RUF012 - pydantic copies it
    at_least: float = Field(1.0, ge=0)


class ToyConfig(CoreConfig):
    toy: Toy = Toy()
    nozzles: dict[str, Nozzle] = {}  # noqa: RUF012

    @model_validator(mode="after")
    def _not_seven(self) -> "ToyConfig":
        if len(self.nozzles) == 7:
            raise ValueError("seven nozzles are too many")
        return self


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pipeline.toml"
    path.write_text(text, encoding="utf-8")
    return path


def complaints(*args: Any) -> list[str]:
    with pytest.raises(UsageError) as error:
        load(ToyConfig, *args)
    return str(error.value).splitlines()


# --- Loading ---


def test_without_anything_there_are_the_defaults() -> None:
    assert load(ToyConfig) == ToyConfig()


def test_overrides_are_laid_over_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = written(tmp_path, '[feed]\nrate = 5\nevents = 7\n[nozzles.big]\nlabel = "x"\n')
    config = load(ToyConfig, path, {"feed.rate": 6.0, "nozzles.big.size": 2.0, "replicas.framer": 3})
    assert (config.feed.rate, config.feed.events, config.feed.loop) == (6.0, 7, False)
    assert config.nozzles == {"big": Nozzle(size=2.0, label="x")}
    assert (config.n_replicas("framer"), config.n_replicas("reader")) == (3, 1)


def test_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        ToyConfig().feed.rate = 3.0  # type: ignore[misc]


def test_file_is_read_as_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    path = written(tmp_path, '[replicas]\n"größe" = 2\n')
    code = f"import pathlib, streamer.config as c; print(c.load(c.CoreConfig, pathlib.Path({str(path)!r})).replicas)"
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "utf-8"}
    python = [sys.executable, "-c", code]
    done = subprocess.run(python, env=os.environ | ascii_only, capture_output=True, encoding="utf-8", timeout=60)
    assert (done.stdout, done.stderr) == ("{'größe': 2}\n", "")


# --- What is wrong with it ---


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("feed.ratte", "rate"),
        ("feed.Events", "events"),
        ("fed.rate", "feed"),
        ("toy.foldr", "folder"),
        ("nozzles.big.sise", "size"),
        ("hop.peer_timout", "peer_timeout"),
    ],
)
def test_unknown_key_names_the_nearest(key: str, nearest: str) -> None:
    (line,) = complaints(None, {key: 1})
    unknown = key if key != "fed.rate" else "fed"
    assert line == f"configuration: unknown key '{unknown}'; did you mean '{nearest}'?"


def test_unknown_key_that_is_near_to_nothing() -> None:
    assert complaints(None, {"feed.xyzzy": 1}) == ["configuration: unknown key 'feed.xyzzy'"]


def test_every_problem_is_told_at_once_with_the_file(tmp_path: Path) -> None:
    path = written(
        tmp_path, "[feed]\nrate = -1\nblock_events = 0\n[toy]\nkind = 'c'\nflga = true\n[hop]\nheartbeat = 0\n"
    )
    lines = complaints(path)
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert sorted(line.split("'")[1] for line in lines) == [
        "feed.block_events",
        "feed.rate",
        "hop.heartbeat",
        "toy.flga",
        "toy.kind",
    ]
    assert "(it is -1)" in lines[0]


def test_problem_of_the_whole_is_told_too() -> None:
    assert complaints(None, {"nozzles": {str(i): {} for i in range(7)}}) == [
        "configuration: seven nozzles are too many"
    ]


@pytest.mark.parametrize("text", ["feed = [", "= 1", "[feed]\nrate = 1\nrate = 2"])
def test_file_that_is_no_toml(text: str, tmp_path: Path) -> None:
    (line,) = complaints(written(tmp_path, text))
    assert "not valid TOML" in line


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "not valid TOML" in complaints(path)[0]


def test_file_that_is_not_there(tmp_path: Path) -> None:
    assert complaints(tmp_path / "no.toml") == [f"{tmp_path / 'no.toml'}: cannot be read (No such file or directory)"]
    assert "cannot be read" in complaints(tmp_path)[0]


@pytest.mark.parametrize("key", ["feed.rate.x", "toy.name.x.y"])
def test_key_below_a_value(key: str, tmp_path: Path) -> None:
    path = written(tmp_path, "[feed]\nrate = 1\n[toy]\nname = 'x'\n")
    (line,) = complaints(path, {key: 1})
    assert "is a value, not a table" in line


def test_table_where_a_value_is_due_and_the_other_way_round() -> None:
    assert "'feed.rate'" in complaints(None, {"feed.rate.x": 1})[0]
    assert "'feed'" in complaints(None, {"feed": 1})[0]
    assert "'replicas.framer'" in complaints(None, {"replicas.framer": 0})[0]


@pytest.mark.parametrize("value", [float("inf"), float("nan"), float("-inf"), "inf", "nan"])
@pytest.mark.parametrize("key", ["feed.rate", "feed.block_wait", "hop.heartbeat", "toy.at_least", "toy.numbers"])
def test_numbers_are_finite(key: str, value: Any) -> None:
    (line,) = complaints(None, {key: [value] if key == "toy.numbers" else value})
    assert key in line


def test_stages_numbers_are_finite_too() -> None:
    with pytest.raises(UsageError, match=r"taggers\.eg\.pt_min"):
        load(Config, None, {"taggers.eg.pt_min": float("inf")})


def test_peers_must_not_seem_dead_between_heartbeats() -> None:
    (line,) = complaints(None, {"hop.heartbeat": "2 s", "hop.peer_timeout": "1 s"})
    assert line.startswith("configuration: 'hop': 'peer_timeout' must be longer than 'heartbeat'")


# --- Times ---


class Times(CoreConfig):
    any: Seconds = 0.0
    positive: PositiveSeconds = 1.0


@pytest.mark.parametrize(
    ("raw", "seconds"),
    [
        ("5 ms", 0.005),
        ("5ms", 0.005),
        (" 250 us ", 0.00025),
        ("2 s", 2.0),
        ("2", 2.0),
        ("1.5 min", 90.0),
        ("1 h", 3600.0),
        (".5 s", 0.5),
        ("1e-3 s", 0.001),
        ("1E+2 ms", 0.1),
        ("0 s", 0.0),
        (3, 3.0),
        (0.25, 0.25),
    ],
)
def test_times(raw: Any, seconds: float) -> None:
    assert load(Times, None, {"any": raw}).any == pytest.approx(seconds)


@pytest.mark.parametrize(
    "raw",
    ["", "ms", "five ms", "5 parsecs", "5 MS", "1 ms 2 us", "e", ".", "1e", "--1", "1e999 s", "-1 ms", "5,5 s", -1],
)
def test_what_is_no_time(raw: Any) -> None:
    with pytest.raises(UsageError) as error:
        load(Times, None, {"any": raw})
    assert "'any'" in str(error.value)
    assert "float" not in str(error.value)


@pytest.mark.parametrize("raw", [0, "0 ms", 1e-400])
def test_a_positive_time_is_not_zero(raw: Any) -> None:
    with pytest.raises(UsageError, match="positive"):
        load(Times, None, {"positive": raw})


# --- The command line's key=value ---


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("feed.rate=5", "feed.rate", 5),
        ("feed.rate = 5.5", "feed.rate", 5.5),
        ("feed.loop=true", "feed.loop", True),
        ("hop.transport=tcp", "hop.transport", "tcp"),
        ("hop.transport='tcp'", "hop.transport", "tcp"),
        ("feed.block_wait=5 ms", "feed.block_wait", "5 ms"),
        ("writer.dir=/tmp/a=b", "writer.dir", "/tmp/a=b"),
        ("writer.dir=", "writer.dir", ""),
        ("input.files=['a', 'b']", "input.files", ["a", "b"]),
        ("toy.words={a = 'b'}", "toy.words", {"a": "b"}),
        ("toy.name=True", "toy.name", "True"),
        ("toy.name=a\nb = 2", "toy.name", "a\nb = 2"),
        ("toy.name=1\nb = 2", "toy.name", "1\nb = 2"),
        ("writer.dir=2026-01-31", "writer.dir", "2026-01-31"),
    ],
)
def test_set_is_read_as_toml_or_as_text(text: str, key: str, value: object) -> None:
    assert parse_set(text) == (key, value)
    assert type(parse_set(text)[1]) is type(value)


@pytest.mark.parametrize("text", ["feed.rate", "=5", " = 5", ""])
def test_set_without_a_key_or_a_value(text: str) -> None:
    with pytest.raises(UsageError, match="write key=value"):
        parse_set(text)


# --- Printing ---


def round_trip(config: CoreConfig, tmp_path: Path) -> CoreConfig:
    return load(type(config), written(tmp_path, to_toml(config)))


@pytest.mark.parametrize("model", [CoreConfig, ToyConfig, Config])
def test_printed_defaults_read_back(model: type[CoreConfig], tmp_path: Path) -> None:
    assert round_trip(model(), tmp_path) == model()


def test_printed_values_read_back(tmp_path: Path) -> None:
    config = ToyConfig(
        feed=FeedConfig(events=10**15, rate=1e-05, loop=True, block_wait=1e22),
        hop=HopConfig(transport="tcp", peer_timeout=123456.789),
        replicas={"framer": 2, "odd name": 3},
        toy=Toy(
            folder=Path("/a b/'c'/\"d\""),
            files=("x", "ü", ""),
            numbers=(1e300, -0.0, 5e-324, 3.0),
            kind="b",
            other=Path("there"),
            flag=True,
            words={"a.b": "c", "": "empty", 'qu"ote': "\\", "[x]": "#"},
        ),
        nozzles={"plain": Nozzle(size=2), "two words": Nozzle(label="l"), "dot.ted": Nozzle(), 'qu"ote': Nozzle()},
    )
    assert round_trip(config, tmp_path) == config


def test_printed_stages_read_back(tmp_path: Path) -> None:
    taggers = {"mine": {"model": "m.onnx", "crop": 16}, "all": {"model": "m.onnx", "objects": "Event"}}
    config = load(Config, None, {"taggers": taggers, "input.columns": {"Photon_pt": "pho.pt"}})
    assert round_trip(config, tmp_path) == config


AWKWARD = [
    *("", '"', "'", "\\", "\n", "\r\n", "\t", "\0", "\x1b[0m", "\x7f"),
    *("\x85", "\u2028", '"""', "# no", "é", "\U0001f600"),
]


@pytest.mark.parametrize("text", AWKWARD, ids=ascii)
def test_awkward_texts_read_back(text: str, tmp_path: Path) -> None:
    config = ToyConfig(toy=Toy(name=text, words={text: text}), nozzles={text: Nozzle(label=text)})
    assert round_trip(config, tmp_path) == config


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
toys = st.builds(
    Toy,
    name=texts,
    folder=texts.filter(lambda text: "\0" not in text).map(Path),
    files=st.lists(texts, max_size=3).map(tuple),
    numbers=st.lists(finite, max_size=3).map(tuple),
    wait=st.floats(0, 1e300),
    words=st.dictionaries(texts, texts, max_size=3),
)


@given(toys, st.dictionaries(texts, st.builds(Nozzle, size=finite, label=texts), max_size=3))
def test_anything_reads_back(tmp_path_factory: pytest.TempPathFactory, toy: Toy, nozzles: dict[str, Nozzle]) -> None:
    config = ToyConfig.model_construct(**{**dict(ToyConfig()), "toy": toy, "nozzles": nozzles})
    assert round_trip(config, tmp_path_factory.getbasetemp()) == config


def test_printed_configuration_explains_itself() -> None:
    text = to_toml(ToyConfig())
    assert "[feed]\n# How events leave the reader.\n" in text
    assert "# A text.\nname = " in text
    assert "# other =" in text  # has no value, and can be given one


class Deep(CoreConfig):
    inner: Annotated[dict[str, int], Field(description="Counts.")] = {"a": 1}  # noqa: RUF012


def test_a_table_of_values_is_explained() -> None:
    assert '[inner]\n# Counts.\n"a" = 1' in to_toml(Deep())


def test_a_built_in_tagger_is_laid_under_what_the_file_says_of_it(tmp_path: Path) -> None:
    from stages.commands import chosen_taggers

    path = tmp_path / "my.toml"
    path.write_text('[taggers.top]\nobjects = "Jet"\nmodel = "my.onnx"\n')
    config = load(Config, path, chosen_taggers(["top", "qg", "my=other.onnx"]))
    assert config.taggers["top"].objects == "Jet"
    assert str(config.taggers["top"].model) == "my.onnx"
    assert str(config.taggers["qg"].model).endswith("models/qg.onnx")
    assert set(config.taggers) == {"top", "qg", "my"}
