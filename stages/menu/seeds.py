"""Which events the paths want to be worked on at all: seeds, those that follow from other paths, and what they save."""

from collections.abc import Iterator

from stages.config import Config
from stages.menu.grammar import parse
from stages.menu.tree import Apply, Name, Tree, names_in


def saves(config: Config) -> bool:
    """Whether there can be events that no path's seed wants: all have one, and no tagger looks at whole events."""
    whole = any(spec.objects == "Event" for spec in config.taggers.values())
    return bool(config.menu.paths) and not whole and all(text != "true" for _, text in seeds_of(config))


def seeds_of(config: Config) -> tuple[tuple[str, str], ...]:
    """Each path's seed. One that only joins others wants an event when one of those does."""
    return tuple(
        (name, spec.seed or " or ".join(_joined(spec.expression, config)) or "true")
        for name, spec in config.menu.paths.items()
    )


def _joined(text: str, config: Config) -> list[str]:
    """The paths of an expression that is made of them by `and` and `or` alone; else none."""

    def look(tree: Tree) -> bool:
        match tree:
            case Name(name) if name in config.menu.paths:
                names.append(name)
                return True
            case Apply("and" | "or", of):
                found = [look(one) for one in of]  # at all of them
                return all(found)
        return False

    names: list[str] = []
    try:
        return names if look(parse(text)) else []
    except (ValueError, RecursionError):  # which is told elsewhere
        return []


def paths_in_seeds(config: Config) -> Iterator[str]:
    """Seeds that name paths, one line each."""
    for name, spec in config.menu.paths.items():
        try:
            named = [other for other in names_in(parse(spec.seed or "true")) if other in config.menu.paths]
        except (ValueError, RecursionError):  # which is told elsewhere
            continue
        if named:
            yield f"seed of path {name}: '{named[0]}' is a path; a seed is made of columns"
