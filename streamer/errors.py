"""The errors a user meets: one clear line each, and the exit code that goes with it."""

import difflib
import traceback
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


def one_line(error: BaseException) -> str:
    """What an exception says."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def told(error: BaseException) -> str:
    """What an exception says in one line, and then its traceback."""
    return f"{one_line(error)}\n{''.join(traceback.format_exception(error))}"


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint `; did you mean 'x'?`, or nothing when no known word is near."""
    lower = {name.lower(): name for name in known}
    found = difflib.get_close_matches(word.lower(), lower, n=1, cutoff=0.6)
    return f"; did you mean '{lower[found[0]]}'?" if found else ""
