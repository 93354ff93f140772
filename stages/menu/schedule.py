"""Which prescale column holds for which lumisection. Pure: what it has decided is written down by whoever asks it.

Events come to the writer nearly in order, not quite. So a column is not switched "now", but for lumisections: one that
has begun, of which an event was seen, keeps its column to its end; another has what is asked for when its first event
comes.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Section = tuple[int, int, int]
"""A lumisection of the stream: pass over the input, run, lumisection."""


@dataclass(frozen=True)
class Asked:
    """What somebody has asked for: a column, from a lumisection on; 0 = from the next one on."""

    column: str
    since: int = 0


@dataclass(frozen=True)
class _Switch:
    """`begun` are the runs (with their passes) that had begun when it was asked for: in those it waits for `since`."""

    asked: Asked
    begun: frozenset[tuple[int, int]]

    def holds(self, section: Section) -> bool:
        return section[:2] not in self.begun or section[2] >= self.asked.since


class Schedule:
    """Prescale columns by lumisection.

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

    def column(self, section: Section) -> str:
        """What holds for a lumisection, of which an event has come."""
        known = self._begun.get(section)
        if known is not None:
            self._begun.move_to_end(section)
            return known
        if not self._begun:  # what was asked for before any event came means the first run
            self._switches = [_Switch(s.asked, s.begun or frozenset([section[:2]])) for s in self._switches]
        return self._begin(section, self._at(section))

    def _at(self, section: Section) -> str:
        return next((s.asked.column for s in reversed(self._switches) if s.holds(section)), self._base)

    def _begin(self, section: Section, column: str) -> str:
        self._begun[section] = column
        if len(self._begun) > self._memory:
            self._begun.popitem(last=False)
        return column

    def at(self, section: Section) -> str:
        """What held for a lumisection that has begun."""
        return self._begun.get(section, self._base)

    def saw(self, section: Section, column: str) -> None:
        """An earlier life has given a lumisection this column."""
        self._begin(section, column)

    def begun_since(self, lumisection: int) -> Section | None:
        """The last lumisection with this number or a higher one that has begun in a run that goes on."""
        sections = list(self._begun)  # asked for in another thread than events come in
        now = {section[:2] for section in sections[-1:]}
        return max((s for s in sections if s[:2] in now and s[2] >= lumisection), default=None)

    def last(self) -> Section | None:
        """The lumisection of which an event came last."""
        return next(reversed(self._begun), None)

    def ask(self, asked: Asked) -> None:
        """Have another column for the lumisections that have not begun."""
        self.asked = asked
        begun = frozenset(section[:2] for section in self._begun)
        if asked.since:
            self._switches = [s for s in self._switches if s.asked.since < asked.since]
            self._switches.append(_Switch(asked, begun))
        else:
            self._switches, self._base = [], asked.column

    def state(self) -> dict[str, Any]:
        """All of it, as plain data."""
        return {
            "asked": [self.asked.column, self.asked.since],
            "base": self._base,
            "switches": [[s.asked.column, s.asked.since, sorted(map(list, s.begun))] for s in self._switches],
            "begun": [[*section, column] for section, column in self._begun.items()],
        }

    @classmethod
    def of(cls, state: dict[str, Any], memory: int) -> "Schedule":
        """What `state` told."""
        found = cls(state["base"], memory)
        found.asked = Asked(*state["asked"])
        found._switches = [
            _Switch(Asked(column, since), frozenset((replay, run) for replay, run in begun))
            for column, since, begun in state["switches"]
        ]
        found._enter(state["begun"])
        return found

    def _enter(self, begun: Iterable[Iterable[Any]]) -> None:
        for replay, run, lumisection, column in begun:
            self._begin((replay, run, lumisection), column)
