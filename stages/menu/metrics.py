"""What a writer tells Prometheus of its menu; read from the trigger's counts when it is asked."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from stages.menu.flags import OUTCOMES, STEPS
from stages.menu.trigger import Trigger


class MenuMetrics(Collector):
    """Counts by path and by outcome, the lumisection that is being decided, and its prescale column."""

    def __init__(self, trigger: Trigger, registry: CollectorRegistry) -> None:
        self._trigger = trigger
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        trigger, menu = self._trigger, self._trigger.menu
        events = CounterMetricFamily(
            "streamer_menu_events", "events by what the menu makes of them", labels=["outcome"]
        )
        for outcome, n in zip(OUTCOMES, trigger.outcomes.tolist(), strict=True):
            events.add_metric([outcome], n)
        yield events
        paths = CounterMetricFamily(
            "streamer_path_events", "events that a path's seed wants, that pass it, that it accepts after its prescale",
            labels=["path", "step"],
        )  # fmt: skip
        for step, counts in zip(STEPS, trigger.counts.tolist(), strict=True):
            for path, n in zip(menu.paths, counts, strict=True):
                paths.add_metric([path, step], n)
        yield paths
        column = GaugeMetricFamily("streamer_prescale_column", "1 for the prescale column in force", labels=["column"])
        last = trigger.schedule.last()
        now = trigger.schedule.at(last) if last is not None else ""
        for name in menu.columns:
            column.add_metric([name], float(name == now))
        yield column
        begun = trigger.schedule.begun_since(0)
        yield GaugeMetricFamily(
            "streamer_lumisection", "the last lumisection that has begun", value=begun[2] if begun is not None else 0
        )
