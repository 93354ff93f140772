"""The inputs of a run as lines that are shuffled and mixed (`stages.order`): their files, and whether they suffice."""

import logging
from collections.abc import Sequence
from pathlib import Path

from stages.config import Config
from stages.inputs import shown
from stages.order import Int64s, Line, Order
from streamer.errors import UsageError

log = logging.getLogger(__name__)


def groups(config: Config) -> list[list[int]]:
    """The places of the files of each input in the list of all files; without a mix, all are of one input.

    Raises
    ------
    UsageError
        A file is in two inputs of the mix.
    """
    files = config.input.expanded()
    if not config.input.weights:
        return [list(range(len(files)))]
    place = {file: number for number, file in enumerate(files)}
    found: list[list[int]] = []
    owner: dict[Path | str, str] = {}
    for name, own in zip(config.input.files, config.input.by_name(), strict=True):
        for file in own:
            if file in owner:
                raise UsageError(f"{shown(file)}: is in two inputs of the mix, {shown(owner[file])} and {shown(name)}")
            owner[file] = name
        found.append([place[file] for file in own])
    return found


def arranged(config: Config, sizes: Sequence[int]) -> tuple[list[Line], Order]:
    """The lines of a run that is shuffled or mixed, and the order in which they take turns.

    Parameters
    ----------
    sizes : sequence of int
        Events of each file.

    Raises
    ------
    UsageError
        An input has no events, or fewer than are asked for.
    """
    given, feed = config.input, config.feed
    names = [str(shown(name)) for name in given.files] if given.weights else ["the input"]
    lines = []
    for k, files in enumerate(groups(config)):
        seed = (given.seed, k) if given.shuffle else None
        lines.append(Line([(number, sizes[number]) for number in files], given.step_events, seed))
    empty = [name for name, line in zip(names, lines, strict=True) if not line.n_events]
    if empty:
        raise UsageError("\n".join(f"{name}: has no events; leave it out" for name in empty))
    n_events = [line.n_events for line in lines]
    order = Order(n_events, given.weights or [1.0], given.step_events, given.seed, loop=feed.loop)
    if given.weights and not feed.loop:
        _tell_end(names, order, feed.events)
    return lines, order


def _tell_end(names: list[str], order: Order, wanted: int) -> None:
    """A mix ends with the first input that has no more events."""
    if wanted > order.end:
        needs: Int64s = order.needs(wanted)
        what_helps = f"ask for at most {order.end:,} (--events), or begin again at its end (--loop)"
        lines = [f"{names[k]}: has {order.sizes[k]:,} events, and {wanted:,} of the mix need {needs[k]:,}; {what_helps}"
                 for k in range(len(names)) if needs[k] > order.sizes[k]]  # fmt: skip
        raise UsageError("\n".join(lines))
    if not wanted:
        log.warning("the mix has %d events: then %s has no more; --loop goes on", order.end, names[order.ends_with])
