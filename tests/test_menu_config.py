"""The settings of a menu: where they stand, what is wrong with them, and that nothing has no effect."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physics_helpers import call

from stages import records
from stages.config import TAGGERS, Config
from stages.menu.config import MenuConfig, same_menu
from stages.menu.menu import menu_of
from stages.menu.output import Expander, StreamFiles
from streamer.config import load, to_toml
from streamer.errors import UsageError

GOOD: dict[str, Any] = {"A_v1": "Photon: pt > 40", "B_v1": {"expression": "nPhoton > 1", "prescale": 5}}


def menu(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "menu.toml"
    path.write_text(text)
    return path


def refused(**settings: Any) -> list[str]:
    with pytest.raises(UsageError) as error:
        load(Config, None, {f"menu.{key}": value for key, value in settings.items()})
    return [line.removeprefix("configuration: ") for line in str(error.value).splitlines()]


def test_a_menu_stands_in_a_file_of_its_own_or_in_the_configuration(tmp_path: Path) -> None:
    text = """
        prescale_column = "high"
        [paths]
        A_v1 = "Photon: pt > 40"
        B_v1 = { expression = "nPhoton > 1", prescale = 5 }
        [columns.high]
        A_v1 = 0
        [streams.physics]
        datasets.EGamma = ["A_v1"]
    """
    apart = load(Config, None, {"menu.file": str(menu(tmp_path, text))})
    inline = tmp_path / "run.toml"
    inline.write_text(text.replace("[", "[menu.", 1).replace("[columns", "[menu.columns").replace("[str", "[menu.str"))
    inline.write_text("[menu]\n" + inline.read_text())
    assert load(Config, inline).menu == apart.menu
    by_name = tmp_path / "by_name.toml"
    by_name.write_text(f'[menu]\nfile = "{tmp_path / "menu.toml"}"\n')
    assert load(Config, by_name).menu == apart.menu
    assert load(Config, by_name, {"menu.prescale_column": "default"}).menu.prescale_column == "default"
    written = tmp_path / "written.toml"
    written.write_text(to_toml(apart))
    assert load(Config, written) == apart, "with all that processes need, and without the file"
    assert [*load(Config, written).menu.paths] == ["A_v1", "B_v1"]
    made = menu_of(apart)
    assert made is not None
    assert made.prescales.tolist() == [[1, 5], [0, 5]]
    assert apart.menu.dataset_places() == {"EGamma": [0]}


def test_without_paths_there_is_no_menu() -> None:
    plain = Config()
    assert menu_of(plain) is None
    assert records.journal(plain).columns == records.scores(plain).columns
    assert records.decided(plain) == records.decisions(plain) == []


def test_the_packaged_menu_fits_the_taggers_of_the_demo() -> None:
    path = Path(__file__).parents[1] / "deploy" / "menu.toml"
    config = load(Config, None, {"menu.file": str(path), **{f"taggers.{name}": {} for name in TAGGERS}})
    made = menu_of(config)
    assert made is not None
    assert made.seeded
    assert made.saves
    assert set(config.menu.streams) == {"physics", "scouting", "express"}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[paths]\nA = "true"\nA = "true"', "not valid TOML: Cannot overwrite a value .*; does a name stand twice?"),
        ("[paths]\nA = ", "not valid TOML: Invalid value"),
        ("", "there are no paths; write them below [paths]"),
        ('file = "x"', "a menu's file cannot name another one"),
    ],
)
def test_files_that_are_no_menu_are_told(tmp_path: Path, text: str, why: str) -> None:
    path = menu(tmp_path, text)
    assert len(lines := refused(file=str(path))) == 1
    assert re.search(why.replace("[", r"\[").replace("?", r"\?"), lines[0])
    assert str(path) in lines[0]


def test_a_file_that_is_not_there_or_has_a_rival(tmp_path: Path) -> None:
    path = menu(tmp_path, '[paths]\nA = "true"')
    assert refused(file=str(tmp_path / "none.toml")) == [
        f"'menu': {tmp_path}/none.toml: cannot be read (No such file or directory)"
    ]
    assert refused(file=str(path), paths=GOOD) == [
        f"'menu': 'paths' stands in {path} and in the configuration; keep one"
    ]


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"columns": {"a": {"A_v1": 1}}}, ["'menu': 'columns' has no effect without paths",
                                          "'menu': prescale column 'a': there is no path 'A_v1'"]),
        ({"prescale_column": "a"}, ["'menu': 'prescale_column' has no effect without paths"]),
        ({"paths": GOOD, "prescale_column": "a"}, ["'menu': there is no prescale column 'a'; there are default"]),
        ({"paths": GOOD, "columns": {"high": {}}, "prescale_column": "hihg"},
         ["'menu': there is no prescale column 'hihg'; did you mean 'high'?"]),
        ({"paths": GOOD, "columns": {"high": {"A_v2": 3}}},
         ["'menu': prescale column 'high': there is no path 'A_v2'; did you mean 'A_v1'?"]),
        ({"paths": GOOD, "columns": {"default": {}}},
         ["'menu': a prescale column cannot be called 'default', which are the paths' own prescales"]),
        ({"paths": GOOD, "columns": {"high": {"A_v1": -1}}},
         ["'menu.columns.high.A_v1': Input should be greater than or equal to 0 (it is -1)"]),
        ({"paths": {"A": {"expression": "true", "prescale": -2}}},
         ["'menu.paths.A.prescale': Input should be greater than or equal to 0 (it is -2)"]),
        ({"paths": {"A": {"expression": "true", "prescal": 2}}},
         ["unknown key 'menu.paths.A.prescal'; did you mean 'prescale'?"]),
        ({"paths": {"A-1": "true", "not": "true", "A_prescale": "true", "A_seed": "true"}},
         ["'menu': a path cannot be called 'A-1'; letters, digits and _, please",
          "'menu': a path cannot be called 'not', which has another meaning",
          "'menu': a path cannot be called 'A_prescale', which has another meaning",
          "'menu': a path cannot be called 'A_seed', which has another meaning"]),
        ({"paths": {"A": "true", "HLT_A": "true"}},
         ["'menu': the paths 'A' and 'HLT_A' have the same column; rename one"]),
        ({"paths": GOOD, "streams": {"physics_1": {"datasets": {"E": ["A_v1"]}}}},
         ["'menu': a stream cannot be called 'physics_1'; letters and digits, please"]),
        ({"paths": {"run": "true"}}, ["a path cannot be called 'run', which is a column already"]),
        ({"paths": {"A": "Photon: egScor > 0.9", "B": "Jet: pt > 3"}},
         ["path A: there is no column 'egScor' of Photon; did you mean 'egScore'?",
          "path B: there is no collection 'Jet'; it comes with --tagger qg"]),
        ({"paths": {"A": {"expression": "true", "seed": "FatJet: pt > 9"}, "B": "Photon: tauScore > 0.5"}},
         ["path B: there is no column 'tauScore' of Photon; FatJet has it with --tagger tau",
          "seed of path A: there is no collection 'FatJet'; it comes with --tagger top or --tagger tau"]),
        ({"paths": {"A": "Photon: genLabel == 1"}},
         ["path A: there is no column 'genLabel' of Photon; there are pt, eta, phi, seedRow, seedCol, egScore"]),
        ({"paths": {"A": {"expression": "true", "seed": "Photon: egScore > 0.3"},
                    "B": {"expression": "A", "seed": "A"}}},
         ["seed of path B: 'A' is a path; a seed is made of columns",
          "seed of path A: there is no column 'egScore' of Photon; there are pt, eta, phi"]),
        ({"paths": GOOD, "streams": {"error": {"datasets": {"E": ["A_v1"]}}}},
         ["'menu': the stream 'error' is there without being asked for: events that could not be processed are told in "
          "the folder 'errors' of the output; leave it out"]),
        ({"paths": GOOD, "streams": {"physics": {}, "s-t": {"datasets": {"E": []}}}},
         ["'menu': a stream cannot be called 's-t'; letters, digits and _, please",
          "'menu': stream 'physics' has no datasets", "'menu': dataset 'E' has no paths"]),
        ({"paths": GOOD, "streams": {"a": {"datasets": {"E": ["A_v1", "A_v1", "C"]}},
                                     "b": {"datasets": {"E": ["A_v1"]}}}},
         ["'menu': dataset 'E': there is no path 'C'", "'menu': dataset 'E' names the path 'A_v1' twice",
          "'menu': dataset 'E' is in the streams 'a' and 'b'; rename one"]),
        ({"paths": GOOD, "streams": {"a": {"content": "crop", "datasets": {"E": ["A_v1"]}}}},
         ["'menu.streams.a.content': Input should be 'scores', 'scores+objects', 'crops', 'source' or 'crops+source' "
          "(it is 'crop')"]),
        ({"paths": GOOD, "streams": {"a": {"without": ["L1_*"], "datasets": {"E": ["A_v1"]}}}},
         ["'menu': stream 'a': 'without' has no effect without content = \"source\"; leave it out"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_a_line_each(settings: dict[str, Any], why: list[str]) -> None:
    assert refused(**settings) == why


def test_columns_of_the_output_are_called_as_in_nanoaod() -> None:
    paths = {"HLT_A_v1": "true", "B_v1": {"expression": "true", "prescale": 2}, "C": "true"}
    streams = {"physics": {"datasets": {"Some": ["C"]}}}
    config = Config.model_validate({"menu": {"paths": paths, "columns": {"high": {"C": 0}}, "streams": streams}})
    names = [column.name for column in records.decided(config)]
    assert names == [
        *("HLT_A_v1", "HLT_B_v1", "HLT_C", "HLT_B_v1_prescale", "HLT_C_prescale", "Stream_physics", "Dataset_Some"),
    ]
    n = 3
    flags = {name: np.full((n, 1), 0b101, np.uint8) for name in ("pathSeeded", "pathPassed", "pathAccepted")}
    expanded = Expander(config)({**flags, "prescaleColumn": np.array([0, 1, 0], np.uint8)})
    assert {name: expanded[name].tolist() for name in names} == {
        **{"HLT_A_v1": [True] * n, "HLT_B_v1": [False] * n, "HLT_C": [True] * n},
        **{"HLT_B_v1_prescale": [2] * n, "HLT_C_prescale": [1, 0, 1]},
        **{"Stream_physics": [True] * n, "Dataset_Some": [True] * n},
    }
    for column in records.decided(config):
        assert expanded[column.name].dtype == column.wire_dtype


def test_files_of_streams_are_told_apart_by_their_writers(tmp_path: Path) -> None:
    config = Config.model_validate({"writer": {"dir": tmp_path}})
    folder = tmp_path / "streams"
    folder.mkdir()
    for name in ("physics", "physics_1", "physics-1", "physics-1_2", "physics-12"):
        (folder / f"{name}.root").touch()
    found = {k: {path.stem for path in StreamFiles(config, k).all()} for k in (0, 1, 12, 2)}
    assert found == {0: {"physics", "physics_1"}, 1: {"physics-1", "physics-1_2"}, 12: {"physics-12"}, 2: set()}


def test_nothing_begins_with_a_wrong_menu(tmp_path: Path, hits_file: Path) -> None:
    path = menu(tmp_path, '[paths]\nA_v1 = "Photon: ptt > 3"\n')
    code, _, err = call("run", hits_file, "--menu", path, "--output", tmp_path / "out")
    assert (code, err) == (
        2,
        "streamer: configuration: path A_v1: there is no column 'ptt' of Photon; did you mean 'pt'?\n",
    )
    assert not (tmp_path / "out").exists()
    code, _, err = call("run", hits_file, "--prescale-column", "a", "--output", tmp_path / "out")
    assert (code, "'prescale_column' has no effect without paths" in err) == (2, True)
    assert call("prescale", "default")[0] == 2, "no run goes on"


def test_menus_are_the_same_whatever_column_is_in_force_and_whichever_version_wrote_them() -> None:
    given = {"paths": GOOD, "streams": {"a": {"datasets": {"E": ["A_v1"]}}}}
    menu = MenuConfig.model_validate(given).model_dump(mode="json")
    before = {**menu, "prescale_from": 7}
    before["streams"] = {"a": {"datasets": {"E": ["A_v1"]}}}
    del before["columns"]
    assert same_menu(before, menu)
    assert same_menu({}, {"file": None})
    assert not same_menu({}, menu)
    assert not same_menu({**menu, "streams": {"a": {"datasets": {"E": ["A_v1"]}, "content": "crops"}}}, menu)
    assert not same_menu({**menu, "streams": {"a": {"what": "another version knew"}}}, menu)
