"""What README and deploy/ promise is there."""

import itertools
import re
import subprocess
import sys
from pathlib import Path

import pytest
from physics_helpers import call

from stages import PIPELINE

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def streamer(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "streamer", *arguments], capture_output=True, text=True, timeout=60)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    command = "pip install -e '.[test]' && pytest"
    assert f"\n{command}\n" in README
    assert f"\n{command}\n" in (ROOT / ".ci" / "run").read_text()


def test_every_command_in_the_readme_exists() -> None:
    known = set(re.findall(r"^│ (\w+) ", streamer("--help").stdout, re.MULTILINE))
    used = set(re.findall(r"^streamer (\w+)", README, re.MULTILINE))
    assert used
    assert used <= known


@pytest.mark.parametrize("command", [("bench", "tagger"), ("model",), ("knee",)])
def test_help_fills_the_lines_of_a_terminal(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = call(*command, "--help")
    assert code == 0
    prose = [line.strip() for line in out.partition("Usage:")[2].partition("Example")[0].splitlines()]
    paragraphs = [[*lines] for full, lines in itertools.groupby(prose, bool) if full]
    assert max(map(len, paragraphs)) > 2
    for line, below in itertools.chain.from_iterable(map(itertools.pairwise, paragraphs)):
        assert len(f"{line} {below.split()[0]}") > 78, line


def test_links_in_the_readme_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize(
    "path", sorted({*(ROOT / "deploy").glob("*.toml")} - {ROOT / "deploy" / "menu.toml"}), ids=lambda path: path.name
)
def test_deployed_configurations_are_valid(path: Path) -> None:
    PIPELINE.load_config(path)
