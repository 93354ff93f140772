"""What a sink has and what it may commit, and what a source learns of it. Pure: no loop, no clock, no file."""

from collections.abc import Iterable

from streamer.block import Block, Schema
from streamer.ledger import IdSet, Intervals, Kept, Stripes, Window


class Keeping:
    """A sink's books.

    An event that was taken is on disk when a sync has ended that began after that. Whatever was taken since is left for
    the next sync, and so a sink that goes on with another file must do so when a sync begins, not when it ends.

    Parameters
    ----------
    stripes : Stripes
    schema : Schema
        The columns of the blocks.
    kept : iterable of (int, int)
        What is on disk from an earlier life, as intervals of the sink's own events (`Stripes.to_local`).

    Attributes
    ----------
    on_disk : IdSet
        The sink's own events that are on disk.
    """

    def __init__(self, stripes: Stripes, schema: Schema, kept: Iterable[tuple[int, int]] = ()) -> None:
        self.stripes, self.schema = stripes, schema
        self.on_disk = IdSet(kept)
        self._have = IdSet(self.on_disk)
        self._fresh = IdSet()  # not the sink's own count, like all that is committed
        self._syncing = IdSet()

    def _local(self, first: int, last: int) -> tuple[int, int]:
        return self.stripes.to_local(first), self.stripes.to_local(last)

    def take(self, block: Block) -> list[Block]:
        """Those events of a block that we have not, to be written at once, in parts that have consecutive events.

        All its events are committed after the next sync: of those that we have, the commit was lost. A block lies
        within one stripe.
        """
        end = block.id + block.n_events - 1
        first, last = self._local(block.id, end)
        new = self._have.missing(first, last)
        self._have.add(first, last)
        self._fresh.add(block.id, end)
        return [block.part(self.schema, a - first, b - first + 1) for a, b in new]

    def begin_sync(self) -> None:
        """From now on everything that was taken is brought to disk, and what a sync that failed has left."""
        for first, last in self._fresh:
            self._syncing.add(first, last)
        self._fresh = IdSet()

    def end_sync(self) -> IdSet:
        """All of that is on disk; returns what may be committed."""
        done, self._syncing = self._syncing, IdSet()
        for first, last in done:  # each within a stripe: those of one sink do not touch
            self.on_disk.add(*self._local(first, last))
        return done


def sink_has(window: Window, kept: Kept, sink: int, intervals: Intervals, again: bool, now: float) -> None:
    """Enter in a source's books everything that a sink has on disk.

    Parameters
    ----------
    intervals : list of (int, int)
        The sink's own events.
    again : bool
        It has begun anew since it told so the last time: what was under way to it may be lost.
    now : float
        Seconds.
    """
    for first, last in intervals:
        kept.sets[sink].add(first, last)
    if again:
        window.commit(kept.of(sink), now)
        window.doubt(sink, kept.stripes)
