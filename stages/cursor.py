"""Reads the events of one input in the order in which they are fed (`stages.order`)."""

from collections.abc import Callable, Iterator

import numpy as np

from stages.order import Int64s, Line, Piece, Pool
from streamer.block import Columns, Schema
from streamer.gather import gather

Read = Callable[[Piece, int], Iterator[tuple[Int64s, Columns]]]
"""Gives the readable entries of a piece in steps, in their order, as events of a pass."""


class Cursor:
    """A place in a line. It goes forwards; what cannot be read is left out.

    Parameters
    ----------
    schema : Schema
        Of what `read` gives.
    """

    def __init__(self, line: Line, schema: Schema, read: Read) -> None:
        self._line, self._schema, self._read = line, schema, read
        self._steps: Iterator[tuple[Int64s, Columns, int]] = iter(())
        self._held: list[tuple[Int64s, Columns]] = []
        self._taken, self._until = 0, -1  # what is before these places has been taken, or read

    def take(self, first: int, n: int) -> tuple[Int64s, Columns]:
        """The events at the places `first` to `first + n`: which of these there are, from 0, and their columns."""
        if not self._taken <= first <= self._until:
            self._held, self._until = [], first
            self._steps = self._from(first)
        self._taken = first + n
        while self._until < first + n:
            places, columns, self._until = next(self._steps)
            if places.size:
                self._held.append((places, columns))
        taken, left = [], []
        for places, columns in self._held:
            begin, end = np.searchsorted(places, [first, first + n]).tolist()
            if begin < end:
                taken.append((places[begin:end] - first, self._schema.slice(columns, begin, end)))
            if end < places.size:
                left.append((places[end:], self._schema.slice(columns, end, places.size)))
        self._held = left
        if not taken:
            return np.zeros(0, np.int64), self._schema.empty()
        return np.concatenate([places for places, _ in taken]), self._schema.concat([part for _, part in taken])

    def _from(self, place: int) -> Iterator[tuple[Int64s, Columns, int]]:
        """Events with their places in the line, and up to where all are there."""
        for pool in self._line.pools(place):
            end = pool.begin + pool.n_events
            if pool.places is None:
                (piece,) = pool.pieces
                after = max(0, place - pool.begin)
                for entries, columns in self._read(Piece(piece.file, piece.first + after, piece.last), pool.replay):
                    places = pool.begin + entries - piece.first
                    yield places, columns, int(places[-1]) + 1
                yield np.zeros(0, np.int64), {}, end
            else:
                yield *self._shuffled(pool, pool.places), end

    def _shuffled(self, pool: Pool, places: Int64s) -> tuple[Int64s, Columns]:
        before, found, parts = 0, [], []
        for piece in pool.pieces:
            for entries, columns in self._read(piece, pool.replay):
                found.append(places[before + entries - piece.first])
                parts.append(columns)
            before += piece.last - piece.first
        if not parts:
            return np.zeros(0, np.int64), {}
        there = np.concatenate(found)
        order = np.argsort(there)
        return pool.begin + there[order], gather(self._schema, self._schema.concat(parts), order)
