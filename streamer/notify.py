"""Tells a service manager how the run does, as systemd's sd_notify(3) has it: datagrams to `$NOTIFY_SOCKET`."""

import logging
import os
import socket

log = logging.getLogger(__name__)


class Notifier:
    """Sends what is new; does nothing where nobody listens.

    Parameters
    ----------
    address : str
        Path of a datagram socket, or with `@` before it an abstract name; empty for none.
    """

    def __init__(self, address: str) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._told: dict[str, str] = {}

    @classmethod
    def of_environment(cls) -> "Notifier":
        """For whoever started us. Our children have nothing to tell them, and do not find the address."""
        return cls(os.environ.pop("NOTIFY_SOCKET", ""))

    def tell(self, **states: str) -> None:
        """Send assignments such as `READY="1"`, of which those that were sent last are left out."""
        if self._send({key: value for key, value in states.items() if self._told.get(key) != value}):
            self._told |= states

    def beat(self) -> None:
        """The run is alive."""
        self._send({"WATCHDOG": "1"})

    def _send(self, states: dict[str, str]) -> bool:
        """Whether it was sent: the manager's queue may be full for a moment."""
        if not self._address or not states:
            return False
        text = "\n".join(f"{key}={' '.join(value.split())}" for key, value in states.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
                link.setblocking(False)  # a manager that does not listen must not hold up the run
                link.sendto(text.encode(), self._address)
        except OSError as error:
            log.debug("the service manager was not told (%s): %s", error, text)
            return False
        return True


class Pulse:
    """Whether a run goes on: something is written while something is under way.

    Parameters
    ----------
    patience : float
        Seconds that nothing may be written, although something is under way and all processes run.

    Attributes
    ----------
    just_stopped : bool
        Whether the last look was the first that found nothing to go on.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.just_stopped = False
        self._done, self._since, self._beating = -1, 0.0, True

    def beats(self, now: float, done: int, under_way: float, *, settled: bool) -> bool:
        """Look once more.

        Parameters
        ----------
        now : float
            By a clock that does not jump [s].
        done, under_way : int, float
            What is written so far, and how much is fed and is not.
        settled : bool
            Whether all processes run; while one starts again, nothing may come out.
        """
        if done != self._done or under_way <= 0 or not settled:
            self._done, self._since = done, now
        beats = now - self._since <= self.patience
        self.just_stopped, self._beating = self._beating and not beats, beats
        return beats
