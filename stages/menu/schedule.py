"""Which prescale column holds for which lumisection. Pure: what it has decided is written down by whoever asks it.

Events come to the writer nearly in order, not quite. So a column is not switched "now", but for lumisections: one of
which an event has been decided keeps its column to its end, and so do those before it; those behind have what is asked
for.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

Section = tuple[int, int, int]
"""A lumisection of the stream: pass over the input, run, lumisection."""

MOST_SWITCHES = 100
"""So many are told apart; of earlier ones no event can be under way."""


@dataclass(frozen=True)
class Asked:
    """What somebody has asked for: a column, from a lumisection on; 0 = from the next one on."""

    column: str
    since: int = 0


@dataclass(frozen=True)
class Place:
    """Where an event stands: its sequence number, which rises with the lumisections of one reader."""

    number: int
    reader: int = 0


@dataclass(frozen=True)
class _Switch:
    """What was asked for when these runs (with their passes) had begun and each reader had got so far."""

    asked: Asked
    begun: frozenset[tuple[int, int]]
    behind: dict[int, int]

    def holds(self, section: Section, place: Place) -> bool:
        """For a lumisection that had not begun then."""
        if place.number <= self.behind.get(place.reader, -1):
            return False
        return section[:2] not in self.begun or section[2] >= self.asked.since

    def for_run(self, run: tuple[int, int]) -> "_Switch":
        """The same, where nothing had begun and it is known now what begins."""
        return self if self.begun else _Switch(self.asked, frozenset([run]), self.behind)


class Schedule:
    """Prescale columns by lumisection.

    `at`, `begun_since` and `last` may be asked by another thread, as by the one that serves metrics: they copy what has
    begun, and do not go through it while it changes.

    Parameters
    ----------
    column : str
        What holds where nothing was asked for.
    memory : int
        So many lumisections are remembered; at least as many as there can be events under way.

    Attributes
    ----------
    asked : Asked
        What was asked for last.
    """

    def __init__(self, column: str, memory: int) -> None:
        self.asked = Asked(column)
        self._base, self._memory = column, memory
        self._switches: list[_Switch] = []
        self._begun: OrderedDict[Section, str] = OrderedDict()
        self._farthest: dict[int, int] = {}

    def column(self, section: Section, place: Place) -> str:
        """What holds for a lumisection, of which an event has come."""
        known = self._begun.get(section)
        if known is None:
            if not self._begun:
                self._switches = [switch.for_run(section[:2]) for switch in self._switches]
            of = (switch.asked.column for switch in reversed(self._switches) if switch.holds(section, place))
            known = next(of, self._base)
        self.saw(section, place, known)
        return known

    def saw(self, section: Section, place: Place, column: str) -> None:
        """A lumisection has this column."""
        self._begun[section] = column
        self._begun.move_to_end(section)
        if len(self._begun) > self._memory:
            self._begun.popitem(last=False)
        self._farthest[place.reader] = max(place.number, self._farthest.get(place.reader, -1))

    def at(self, section: Section) -> str:
        """What held for a lumisection that has begun."""
        return self._begun.get(section, self._base)

    def begun_since(self, lumisection: int) -> Section | None:
        """The last lumisection with this number or a higher one that has begun in the run that goes on."""
        begun = tuple(self._begun)
        return max((s for s in begun if s[:2] == begun[-1][:2] and s[2] >= lumisection), default=None)

    def begins(self, section: Section, lumisection: int) -> bool:
        """Whether an event would begin a lumisection with this number or a higher one."""
        return section[2] >= lumisection and section not in self._begun

    def last(self) -> Section | None:
        """The lumisection of which an event came last."""
        begun = tuple(self._begun)
        return begun[-1] if begun else None

    def ask(self, asked: Asked) -> None:
        """Have another column for the lumisections behind those that have begun."""
        self.asked = asked
        begun = frozenset(section[:2] for section in self._begun)
        self._switches.append(_Switch(asked, begun, dict(self._farthest)))
        while len(self._switches) > MOST_SWITCHES:
            self._base = self._switches.pop(0).asked.column

    def state(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {
            "asked": [self.asked.column, self.asked.since],
            "base": self._base,
            "switches": [
                [s.asked.column, s.asked.since, sorted(map(list, s.begun)), sorted(map(list, s.behind.items()))]
                for s in self._switches
            ],
            "begun": [[*section, column] for section, column in self._begun.items()],
            "farthest": sorted(map(list, self._farthest.items())),
        }

    @classmethod
    def of(cls, state: dict[str, Any], memory: int) -> "Schedule":
        """What `state` told."""
        found = cls(state["base"], memory)
        found.asked = Asked(*state["asked"])
        found._switches = [
            _Switch(Asked(column, since), frozenset((replay, run) for replay, run in begun), dict(behind))
            for column, since, begun, behind in state["switches"]
        ]
        found._begun.update({(replay, run, lumi): column for replay, run, lumi, column in state["begun"]})
        found._farthest = dict(state["farthest"])
        return found
