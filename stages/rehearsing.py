"""Other networks for taggers are tried in a process of their own before the stream's taggers load them.

All that a network's warm-up does (`stages.network.Network.warm_up`) is done here, once for all replicas: it is loaded
and held against what its tagger sees, a changed graph is held against the unchanged one, the form is chosen, and what
batches cost is learned. A tagger then only loads the network, and goes by what was found (`Network.get_ready`).
"""

from typing import Any

from stages.config import Config
from stages.network import REHEARSAL_S
from stages.tagger import loaded, others, pin


def rehearse(now: Config, wanted: Config) -> dict[str, dict[str, Any]]:
    """Try the networks that `wanted` has and `now` has not; what was found, by tagger (`stages.tagger.Loaded`).

    Where both name the same files, one may have been written anew, and all are tried. The first GPU stands for all.

    Raises
    ------
    UsageError
        With one line for each network that cannot be used, or something else is to be changed.
    """
    names = others(now, wanted) or [*wanted.taggers]
    pin(wanted)
    return {one.network.name: one.findings for one in loaded(wanted, names, within=REHEARSAL_S)}
