"""The errors a user meets: one clear line each, and the exit code that goes with it."""

import difflib
from collections.abc import Iterable

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2


class StreamerError(Exception):
    """Something went wrong while running. The message is one line: what, where, what to do.

    Attributes
    ----------
    again : bool
        Whether it may help to start the process again.
    """

    exit_code = EXIT_FAILED
    again = True


class UsageError(StreamerError):
    """Something the user can fix before the start: a file, a setting, a port, a model."""

    exit_code = EXIT_USAGE
    again = False


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint `; did you mean 'x'?`, or nothing when no known word is near."""
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean '{lower[found[0]]}'?" if found else ""
