"""What a pipeline package hands to the core: its name, configuration, chain of stages and extra commands."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from streamer.config import CoreConfig, load
from streamer.errors import UsageError, nearest
from streamer.quality import Quantity
from streamer.stage import Unit

ENTRY_POINTS = "streamer.pipeline"


@dataclass(frozen=True)
class StageSpec:
    """A place in the chain.

    Parameters
    ----------
    target : str
        `module:Class`, imported only in the process that needs it.
    rehearse : str
        `module:function`; called with the configuration in force and with another one, in a process of its own, before
        a replica is asked to `prepare` for that: does once what is expensive or dangerous about it, and returns what it
        found, as plain data for `prepare`. Raises `UsageError` where the change is wrong. Without it nothing is tried.
    """

    name: str
    target: str
    rehearse: str = ""

    def make(self, config: CoreConfig) -> Unit:
        module, _, name = self.target.partition(":")
        unit = getattr(import_module(module), name)(config)
        assert isinstance(unit, Unit)
        return unit


@dataclass(frozen=True)
class Pipeline:
    """A chain of stages, in the order in which an event passes them.

    Parameters
    ----------
    add_commands : str
        `module:function`; called with the command line's typer application.
    finish : str
        `module:function`; called with a configuration after everything is on disk and a process of the last stage
        could not end in order: makes of it what it would have made.
    changed : str
        `module:function`; called with the configuration that a run will have from now on, before anything is done by
        it: keeps what a run that goes on must know.
    quality : str
        `module:function`; called with a configuration, returns the `streamer.quality.Quantity` that its stages measure.
        Without it nothing is held against a reference.
    program : str
        The module that `python -m` runs for one of its processes.
    preload : tuple of str
        Modules that its stages load only when they begin: imported once, before their processes are forked.
    draw : str
        `module:function`; called with a configuration and a `Sink.glimpse`, returns what is to be seen of that event,
        as plain data. Without it there are no event displays.
    checks : str
        `module:function`; called with a valid configuration, returns one line per problem that only a look at
        files and models can show.
    """

    name: str
    config: type[CoreConfig]
    chain: tuple[StageSpec, ...]
    add_commands: str
    checks: str
    finish: str = ""
    draw: str = ""
    changed: str = ""
    quality: str = ""
    program: str = "streamer"
    preload: tuple[str, ...] = ()

    @cached_property
    def names(self) -> list[str]:
        return [spec.name for spec in self.chain]

    @property
    def modules(self) -> list[str]:
        """What its processes import."""
        targets = [target for spec in self.chain for target in (spec.target, spec.rehearse) if target]
        return [*dict.fromkeys(target.partition(":")[0] for target in targets), *self.preload]

    def place(self, stage: str) -> int:
        """Where a stage stands in the chain, from 0."""
        if stage not in self.names:
            raise UsageError(f"no stage '{stage}' in {' > '.join(self.names)}{nearest(stage, self.names)}")
        return self.names.index(stage)

    def quantities(self, config: CoreConfig) -> tuple[Quantity, ...]:
        """What the stages measure of the data."""
        return tuple(resolve(self.quality)(config)) if self.quality else ()

    def load_config(self, path: Path | None, overrides: dict[str, Any] | None = None) -> CoreConfig:
        """The effective configuration, with the replicas checked against the chain."""
        config = load(self.config, path, overrides)
        for name in config.replicas:
            self.place(name)
        return config

    def replicas(self, config: CoreConfig) -> list[tuple[str, int]]:
        """Every process of the pipeline, in chain order."""
        return [(name, k) for name in self.names for k in range(config.n_replicas(name))]


def resolve(target: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = target.partition(":")
    function = getattr(import_module(module), name)
    assert callable(function)
    return function  # type: ignore[no-any-return]


def installed_pipeline() -> Pipeline:
    """The pipeline that is installed beside the core."""
    found = sorted(entry_points(group=ENTRY_POINTS), key=lambda entry: entry.name)
    if not found:
        raise UsageError("no pipeline is installed; install one with: pip install e2e-streamer")
    pipeline = found[0].load()
    assert isinstance(pipeline, Pipeline)
    return pipeline
