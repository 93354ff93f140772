"""From the expressions of a menu to one list of steps over whole columns, in which nothing is computed twice."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from stages.menu.codes import COUNT, FILL, FLAG_STEPS, FUNCTIONS, NUMBER_STEPS, TRUE
from stages.menu.grammar import parse
from stages.menu.tree import Apply, Counted, Name, Number, Tree, names_in
from streamer.block import Array, Columns, offsets
from streamer.errors import nearest

_TURNED = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}

EVENT = "event"
"""The scope of what an event has once; others are collections."""


@dataclass(frozen=True)
class Available:
    """What expressions can use.

    Attributes
    ----------
    event : mapping
        Names of what an event has once, to its columns.
    members : mapping
        Collections to the names of what their members have, and these to columns.
    absent : mapping
        Names that are not there, to what they would come with, in words.
    """

    event: Mapping[str, str]
    members: Mapping[str, Mapping[str, str]]
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Node:
    """A value of each entry of a scope: `what` of other nodes; `load` is that of a column, `value` a number's."""

    what: str
    scope: str
    of: tuple[int, ...] = ()
    column: str = ""
    value: float = 0.0

    @property
    def is_flag(self) -> bool:
        return self.what in FLAG_STEPS


@dataclass
class _Build:
    """Collects the nodes of all expressions; equal ones are the same."""

    available: Available
    nodes: list[_Node] = field(default_factory=list)
    places: dict[_Node, int] = field(default_factory=dict)

    def add(self, node: _Node) -> int:
        if node not in self.places:
            self.places[node] = len(self.nodes)
            self.nodes.append(node)
        return self.places[node]

    def flag(self, tree: Tree, scope: str, paths: Mapping[str, int]) -> int:
        """A condition."""
        place = self.any(tree, scope, paths)
        if not self.nodes[place].is_flag:
            raise ValueError(f"{shown(tree)} is a number where a condition is needed, such as {shown(tree)} > 0")
        return place

    def number(self, tree: Tree, scope: str, paths: Mapping[str, int]) -> int:
        place = self.any(tree, scope, paths)
        if self.nodes[place].is_flag:
            raise ValueError(f"{shown(tree)} is a condition where a number is needed")
        return place

    def any(self, tree: Tree, scope: str, paths: Mapping[str, int]) -> int:
        match tree:
            case Number(value):
                return self.add(_Node("value", scope, value=value))
            case Name(text):
                return self._named(text, scope, paths)
            case Counted():
                return self._counted(tree, scope)
            case Apply("true"):
                return self.add(_Node("true", scope))
            case Apply("and" | "or" as what, of):
                first, *others = dict.fromkeys(self.flag(one, scope, paths) for one in of)
                for other in others:
                    first = self.add(_Node(what, scope, (first, other)))
                return first
            case Apply("not", (one,)):
                return self.add(_Node("not", scope, (self.flag(one, scope, paths),)))
            case Apply("<" | "<=" | ">" | ">=" | "==" | "!=" as what, (left, right)):
                return self._compared(what, left, right, scope, paths)
            case Apply(what, of):
                if what.endswith("()"):
                    _check_call(what, len(of))
                return self.add(_Node(what, scope, tuple(self.number(one, scope, paths) for one in of)))
        raise AssertionError(tree)

    def _compared(self, what: str, left: Tree, right: Tree, scope: str, paths: Mapping[str, int]) -> int:
        if isinstance(left, Number):  # a number stands to the right
            left, right, what = right, left, _TURNED[what]
        of = self.number(left, scope, paths)
        if isinstance(right, Number):
            return self.add(_Node(f"{what}v", scope, (of,), value=right.value))
        other = self.number(right, scope, paths)
        if what.startswith(">"):
            of, other, what = other, of, _TURNED[what]
        return self.add(_Node(what, scope, (of, other)))

    def _named(self, text: str, scope: str, paths: Mapping[str, int]) -> int:
        if scope == EVENT and text in paths:
            return paths[text]
        known = self.available.event if scope == EVENT else self.available.members[scope]
        if text not in known and text not in known.values():
            what = f"no path or column '{text}'" if scope == EVENT else f"no column '{text}' of {scope}"
            hint = self._comes_with(text) or nearest(text, [*known, *(paths if scope == EVENT else ())])
            raise ValueError(f"there is {what}{hint or _there_are(known)}")
        return self.add(_Node("load", scope, column=known.get(text, text)))

    def _counted(self, tree: Counted, scope: str) -> int:
        name, members = tree.collection, self.available.members
        if scope != EVENT:
            raise ValueError(f"'{name}: ...' stands within '{scope}: ...'; join them with 'and' in parentheses")
        if name not in members:
            hint = self._comes_with(name) or nearest(name, members) or _there_are(members)
            raise ValueError(f"there is no collection '{name}'{hint}")
        if tree.n < 1 or tree.n != int(tree.n) or tree.n >= 1 << 31:
            raise ValueError(f"{tree.n:g} {name}: say how many at least, 1 or more")
        so = self.flag(tree.so, name, {})
        return self.add(_Node("count", EVENT, (so,), column=name, value=tree.n))

    def _comes_with(self, name: str) -> str:
        told = self.available.absent.get(name)
        return f"; {told}" if told else ""


def _there_are(names: Iterable[str]) -> str:
    return f"; there are {', '.join(names)}"


def _check_call(what: str, n: int) -> None:
    if what not in FUNCTIONS:
        raise ValueError(f"there is no function '{what}'{nearest(what, FUNCTIONS) or _there_are(FUNCTIONS)}")
    if n != FUNCTIONS[what]:
        raise ValueError(f"'{what}' takes {FUNCTIONS[what]}, not {n}")


def shown(tree: Tree) -> str:
    """A tree for people: in full where that is short."""
    match tree:
        case Number(value):
            return f"{value:g}"
        case Name(text):
            return f"'{text}'"
        case Counted():
            return f"'{tree.collection}: ...'"
        case Apply(what, of) if len(of) == 2 and not what.endswith("()"):
            return f"{shown(of[0])} {what} {shown(of[1])}"
    return f"'{tree.what}'"


class Program:
    """Conditions of events, computed together for a block.

    Parameters
    ----------
    nodes : sequence of _Node
        Each behind those that it is made of.
    roots : sequence of int
        The nodes that are wanted.
    """

    def __init__(self, nodes: Sequence[_Node], roots: Sequence[int]) -> None:
        used = _reached(nodes, roots)
        self.scopes = [EVENT, *sorted({nodes[i].scope for i in used} - {EVENT})]
        self.n_roots = len(roots)
        self._loads: list[tuple[str, int, int]] = []  # column, scope, register
        places = _Registers(nodes, used, roots)
        steps, values = [], []
        for i in sorted(used):
            if nodes[i].what == "load":  # before all steps
                places.take(i)
                self._loads.append((nodes[i].column, self.scopes.index(nodes[i].scope), places.of[i]))
        for i in sorted(used):
            node = nodes[i]
            if node.what == "load":
                continue
            of = [places.of[k] for k in node.of]
            places.take(i)
            code = FLAG_STEPS.get(node.what, NUMBER_STEPS.get(node.what, FILL if node.what == "value" else TRUE))
            scope = self.scopes.index(node.column if code == COUNT else node.scope)
            steps.append([code, scope, places.of[i], *of, *[0] * (2 - len(of))])
            values.append(node.value)
        self._steps = np.array(steps, np.int32).reshape(-1, 5)
        self._values = np.array(values, np.float64)
        self._roots = np.array([places.of[i] for i in roots], np.int64)
        self._n_numbers, self._n_flags = places.most[False], places.most[True]

    @property
    def n_steps(self) -> int:
        """What it has to do for a block, but for the columns that are read."""
        return len(self._steps)

    @property
    def columns(self) -> set[str]:
        """What it reads."""
        return {column for column, *_ in self._loads}

    def __call__(self, columns: Columns, n_events: int) -> Array:
        """Whether each event fulfils each condition.

        Integers count as they are, up to 2^53, and all is computed in double precision. What is divided by zero or no
        number fulfils no comparison but `!=`.

        Returns
        -------
        uint8, shape (n_roots, n_events)
            0 or 1.
        """
        from stages.menu.steps import run_steps  # compiled, which checking a configuration does not need

        ends = np.empty((len(self.scopes), n_events + 1), np.int64)
        ends[0] = np.arange(n_events + 1)
        for k, scope in enumerate(self.scopes[1:], 1):
            ends[k] = offsets(columns[f"n{scope}"])
        longest = max(1, int(ends[:, -1].max()))
        numbers = np.empty((max(1, self._n_numbers), longest), np.float64)
        flags = np.empty((max(1, self._n_flags), longest), np.uint8)
        for column, at, register in self._loads:
            numbers[register, : ends[at, -1]] = columns[column]
        run_steps(self._steps, self._values, ends, numbers, flags)
        return flags[self._roots, :n_events]


def _reached(nodes: Sequence[_Node], roots: Iterable[int]) -> set[int]:
    """The nodes that the roots are made of, and the roots."""
    reached: set[int] = set()
    open_ = list(roots)
    while open_:
        i = open_.pop()
        if i not in reached:
            reached.add(i)
            open_ += nodes[i].of
    return reached


class _Registers:
    """Where values are kept: a register is used again when nobody needs its value any more."""

    def __init__(self, nodes: Sequence[_Node], used: Iterable[int], roots: Iterable[int]) -> None:
        self._nodes = nodes
        self._left = Counter(k for i in used for k in nodes[i].of)
        self._left.update(roots)  # never used up
        self._free: dict[bool, list[int]] = {False: [], True: []}
        self.most = {False: 0, True: 0}
        self.of: dict[int, int] = {}

    def take(self, i: int) -> None:
        """A register for a node's value; those of which it is made are free then, where it is their last use."""
        node = self._nodes[i]
        for k in node.of:
            self._left[k] -= 1
        if node.what != "count":  # it looks at several entries for one
            self._release(node.of)
        kind = node.is_flag
        if self._free[kind]:
            self.of[i] = self._free[kind].pop()
        else:
            self.of[i] = self.most[kind]
            self.most[kind] += 1
        if node.what == "count":
            self._release(node.of)

    def _release(self, nodes: Iterable[int]) -> None:
        for k in set(nodes):
            if not self._left[k]:
                self._free[self._nodes[k].is_flag].append(self.of[k])


def compiled(
    paths: Mapping[str, str], available: Available, seeds: Mapping[str, Tree] | None = None
) -> tuple[Program | None, list[str]]:
    """A program with one condition a path, in their order; or what is wrong, one line each.

    Parameters
    ----------
    paths : mapping
        Names to expressions, which may name other paths.
    seeds : mapping, optional
        Names of paths to what must hold besides, which names no path.
    """
    seeds = seeds or {}
    problems: list[str] = []
    trees: dict[str, Tree] = {}
    for name, text in paths.items():
        try:
            trees[name] = parse(text)
        except ValueError as error:
            problems.append(f"path {name}: {text!r} {error}" if not text.strip() else f"path {name}: {error}")
    build = _Build(available)
    done = {name: build.add(_Node("true", EVENT)) for name in paths if name not in trees}
    for name in [*_in_order(trees, problems)]:
        try:
            both = Apply("and", (seeds[name], trees[name])) if name in seeds else trees[name]
            done[name] = build.flag(both, EVENT, {**dict.fromkeys(trees, -1), **done})
        except ValueError as error:
            problems.append(f"path {name}: {error}")
            done[name] = build.add(_Node("true", EVENT))  # those that name it are not wrong as well
        except RecursionError:
            problems.append(f"path {name}: its parts lie too deep within each other")
    if problems:
        return None, problems
    return Program(build.nodes, [done[name] for name in paths]), []


def _in_order(trees: Mapping[str, Tree], problems: list[str]) -> Iterator[str]:
    """The paths, each behind those that it names; circles are told."""
    ready: set[str] = set()
    waiting: dict[str, list[str]] = {}
    for name, tree in trees.items():
        try:
            waiting[name] = [other for other in dict.fromkeys(names_in(tree)) if other in trees]
        except RecursionError:
            problems.append(f"path {name}: its parts lie too deep within each other")
    while waiting:
        now = [name for name, others in waiting.items() if ready.issuperset(others)]
        if not now:
            circle = _circle(waiting)
            problems.append(f"paths name each other in a circle: {' -> '.join(circle)}")
            return
        for name in now:
            del waiting[name]
            ready.add(name)
            yield name


def _circle(waiting: Mapping[str, list[str]]) -> list[str]:
    way = [next(iter(waiting))]
    while True:
        further = next((other for other in waiting[way[-1]] if other in waiting), None)
        if further is None:
            return way
        if further in way:
            return [*way[way.index(further) :], further]
        way.append(further)
