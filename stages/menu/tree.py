"""What an expression of a menu is made of, once it is read (`stages.menu.grammar`)."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Number:
    """A number that stands there."""

    value: float


@dataclass(frozen=True)
class Name:
    """A column or a path."""

    text: str


@dataclass(frozen=True)
class Apply:
    """An operation: `or`, `and`, `not`, `true`, a comparison, one of `+ - * /`, `neg`, or a function."""

    what: str
    of: tuple["Tree", ...] = ()


@dataclass(frozen=True)
class Counted:
    """At least `n` members of a collection are so."""

    n: float
    collection: str
    so: "Tree"


Tree = Number | Name | Apply | Counted


def names_in(tree: Tree) -> Iterator[str]:
    """The names that stand in an expression where it speaks of the event: columns and other paths."""
    match tree:
        case Name(text):
            yield text
        case Apply(_, of):
            for one in of:
                yield from names_in(one)
