"""The language of a menu's expressions: from text to a tree. What the names mean is looked up in `stages.menu.program`.

Photon: pt > 40 and egScore > 0.9       at least one photon that is so
2 FatJet: tauScore > 0.8                at least two
(Jet: pt > 100) and nPhoton >= 2        terms are joined in parentheses; columns of the event stand alone
E2E_Photon40_v1 or E2E_DiTau_v2         other paths
true                                    passes everything
"""

from functools import cache, lru_cache
from typing import Any

from lark import Lark, Token, Transformer
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from stages.menu.tree import Apply, Counted, Name, Number, Tree

MOST_LETTERS = 4000
"""Of an expression."""

GRAMMAR = r"""
    ?start: counted | either
    counted: [NUMBER] NAME ":" either
    ?either: both ("or" both)*
    ?both: inverse ("and" inverse)*
    ?inverse: "not" inverse -> negation
            | comparison
    ?comparison: sum (COMPARE sum)*
    ?sum: product (SUM product)*
    ?product: factor (PRODUCT factor)*
    ?factor: "-" factor -> minus
           | NUMBER -> number
           | "true" -> true
           | NAME -> name
           | NAME "(" either ("," either)* ")" -> call
           | "(" start ")"

    COMPARE: "<=" | ">=" | "==" | "!=" | "<" | ">"
    SUM: "+" | "-"
    PRODUCT: "*" | "/"
    NAME: /[A-Za-z][A-Za-z0-9_]*/
    NUMBER: /(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?/
    %ignore /[ \t\r\n]+/
"""


class _Trees(Transformer[Token, Tree]):
    """Makes the tree while the text is read."""

    def number(self, of: list[Any]) -> Tree:
        return Number(float(of[0]))

    def name(self, of: list[Any]) -> Tree:
        return Name(str(of[0]))

    def true(self, of: list[Any]) -> Tree:
        return Apply("true")

    def call(self, of: list[Any]) -> Tree:
        return Apply(str(of[0]) + "()", tuple(of[1:]))

    def minus(self, of: list[Any]) -> Tree:
        return Number(-of[0].value) if isinstance(of[0], Number) else Apply("neg", tuple(of))

    def negation(self, of: list[Any]) -> Tree:
        return Apply("not", tuple(of))

    def both(self, of: list[Any]) -> Tree:
        return Apply("and", tuple(of))

    def either(self, of: list[Any]) -> Tree:
        return Apply("or", tuple(of))

    def counted(self, of: list[Any]) -> Tree:
        number, collection, so = of
        return Counted(1.0 if number is None else float(number), str(collection), so)

    def comparison(self, of: list[Any]) -> Tree:
        """`30 < pt < 50` is `30 < pt and pt < 50`."""
        links = [Apply(str(of[i]), (of[i - 1], of[i + 1])) for i in range(1, len(of), 2)]
        return links[0] if len(links) == 1 else Apply("and", tuple(links))

    def sum(self, of: list[Any]) -> Tree:
        """From the left to the right, and so is `product`."""
        tree: Tree = of[0]
        for i in range(1, len(of), 2):
            tree = Apply(str(of[i]), (tree, of[i + 1]))
        return tree

    product = sum


@cache
def _parser() -> Lark:
    return Lark(GRAMMAR, parser="lalr", transformer=_Trees(), maybe_placeholders=True)


@lru_cache(4096)
def parse(text: str) -> Tree:
    """The tree of an expression.

    Raises
    ------
    ValueError
        It is none; the message says where that shows.
    """
    if len(text) > MOST_LETTERS:
        raise ValueError(f"is {len(text)} letters long; at most {MOST_LETTERS} are read")
    try:
        return _parser().parse(text)  # type: ignore[return-value]
    except UnexpectedInput as error:
        raise ValueError(_told(text, error)) from None


def _told(text: str, error: UnexpectedInput) -> str:
    if not text.strip():
        return "is empty; write 'true' for a path that passes everything"
    if isinstance(error, UnexpectedToken) and error.token.type == "$END":
        return f"ends too early, behind {text.strip()[-20:]!r}"
    place = error.pos_in_stream or 0
    rest = text[place : place + 20]
    if isinstance(error, UnexpectedCharacters):
        if text[place] == "=":
            return f"{rest!r}: equality is written '=='"
        if text[place] in "&|!":
            return f"{rest!r}: write 'and', 'or', 'not'"
    if rest.startswith(":"):
        return f"{rest!r}: a term such as 'Photon: pt > 40' stands alone, or in parentheses"
    return f"{rest!r} cannot stand there (letter {place + 1})"
