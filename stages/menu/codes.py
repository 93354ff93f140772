"""The steps that conditions are computed by: their names in expressions, and their numbers in `stages.menu.steps`."""

NUMBER_STEPS = {"+": 0, "-": 1, "*": 2, "/": 3, "neg": 4, "abs()": 5, "sqrt()": 6, "min()": 7, "max()": 8}
"""Give numbers."""
FILL = 9
FLAG_STEPS = {
    **{"<": 10, "<=": 11, "==": 12, "!=": 13},
    **{"<v": 14, "<=v": 15, ">v": 16, ">=v": 17, "==v": 18, "!=v": 19},
    **{"and": 20, "or": 21, "not": 22, "true": 23, "count": 24},
}
"""Give flags. Those with `v` compare with a number that stands there, as nearly all do; `count` is whether an event has
at least so many flagged members."""
TRUE, COUNT = FLAG_STEPS["true"], FLAG_STEPS["count"]

FUNCTIONS = {"abs()": 1, "sqrt()": 1, "min()": 2, "max()": 2}
"""Their names and how many arguments they take."""
