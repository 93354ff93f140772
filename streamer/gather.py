"""Events taken from columns, in any order."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from streamer.block import Array, Columns, Schema, offsets


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
            axes = len(columns[column.name]), -1
            begins = offsets(columns[column.name].reshape(axes).sum(1, dtype=np.int64))
            ends = offsets(begins[of + 1] - begins[of])
            places[column.counts] = np.repeat(begins[of] - ends[:-1], np.diff(ends)) + np.arange(ends[-1])
    return out
