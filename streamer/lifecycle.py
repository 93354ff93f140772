"""The states of a process, and which may follow which."""

from prometheus_client import CollectorRegistry, Enum

STATES = ("starting", "ready", "running", "draining", "stopped", "failed")

_NEXT = {
    "starting": ("ready",),
    "ready": ("running",),
    "running": ("draining",),
    "draining": ("stopped",),
    "stopped": (),
    "failed": (),
}


class LifeCycle:
    """Where a process is in its life: starting > ready > running > draining > stopped, or failed from any but the last.

    *starting*: sets up, loads, warms up. *ready*: sockets are bound and the stage is warm. *running*: the next stage
    takes events. *draining*: nothing new is taken, what is here comes out.
    """

    def __init__(self) -> None:
        self.state = "starting"
        self._metric: Enum | None = None

    def publish(self, registry: CollectorRegistry, stage: str) -> None:
        """Tell Prometheus, too."""
        metric = Enum("streamer_state", "life cycle", ["stage"], states=STATES, registry=registry)
        self._metric = metric.labels(stage)
        self._metric.state(self.state)

    def enter(self, state: str) -> None:
        """Go on to a state; to say it again does no harm.

        Raises
        ------
        ValueError
            It cannot follow.
        """
        failing = state == "failed" and self.state != "stopped"
        if state != self.state and not failing and state not in _NEXT[self.state]:
            raise ValueError(f"a process that is {self.state} cannot become {state}")
        self.state = state
        if self._metric is not None:
            self._metric.state(state)
