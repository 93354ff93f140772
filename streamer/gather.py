"""Events taken from columns, in any order, and members of theirs that are left out."""

from collections.abc import Collection, Mapping

import numpy as np
import numpy.typing as npt

from streamer.block import Array, Columns, Schema, members, offsets


def gather(schema: Schema, columns: Mapping[str, Array], events: npt.NDArray[np.int64]) -> Columns:
    """The events at these places of `columns`, with their collections.

    Parameters
    ----------
    events : int64, shape (n_events,)
    """
    places = {"event": events}
    out: Columns = {}
    for column in schema.columns:
        of = places[column.per]
        out[column.name] = columns[column.name][of]
        if column.counts:
            begins = offsets(members(columns[column.name]))
            ends = offsets(begins[of + 1] - begins[of])
            places[column.counts] = np.repeat(begins[of] - ends[:-1], np.diff(ends)) + np.arange(ends[-1])
    return out


def keep_members(
    schema: Schema, columns: Mapping[str, Array], names: Collection[str], kept: npt.NDArray[np.bool_]
) -> Columns:
    """The same events, of which some have nothing in some collections.

    Parameters
    ----------
    names : collection of str
        The columns of those collections, with their counts.
    kept : bool, shape (n_events,)
        The others have nothing.
    """
    if kept.all():
        return dict(columns)
    having = {"event": kept}
    out: Columns = {}
    for column in schema.columns:
        array = columns[column.name]
        if column.name in names:
            there = having[column.per]
            if column.counts:
                having[column.counts] = np.repeat(there, members(array))
            if column.per != "event":
                array = array[there]
            elif column.counts:
                array = np.where(there.reshape(-1, *(1 for _ in column.shape)), array, 0).astype(array.dtype)
        out[column.name] = array
    return out
