"""How a writer's trigger begins, goes on after a restart, and has its prescale column switched."""

import logging
from collections.abc import Callable

from stages.config import Config
from stages.manifest import OpenManifest
from stages.menu.config import DEFAULT, SEVERAL, MenuConfig, same_menu
from stages.menu.menu import Menu, menu_of
from stages.menu.schedule import Asked, Schedule
from stages.menu.tally import read_row
from stages.menu.trigger import Trigger
from stages.records import scores
from streamer.block import Block
from streamer.errors import UsageError
from streamer.journal import Journal

log = logging.getLogger(__name__)


def begun_trigger(config: Config, manifest: OpenManifest, journal: Journal) -> Trigger:
    """The trigger of a writer whose run has a menu; it goes on behind what is on disk.

    Raises
    ------
    OSError
        The manifest does not take what was asked for.
    """
    menu = menu_of(config)
    assert menu is not None
    _warm_up(config, menu)
    memory = config.feed.max_in_flight * config.n_replicas("reader") + 1
    wanted = _asked(config.menu)
    if manifest.prescales:
        schedule = Schedule.of(manifest.prescales, memory)
    else:
        first = _asked(MenuConfig.model_validate(manifest.about["config"]["menu"]))  # not what is wanted since
        schedule = Schedule(DEFAULT if first.since else first.column, memory)
    n_page = 0 if config.input.in_order else config.input.step_events
    trigger = Trigger(menu, schedule, config.n_replicas("reader"), n_page)
    for segment in manifest.segments():
        for row in segment.menu:
            trigger.passed += read_row(row, len(menu.paths))[1].paths[1]
    trigger.remember(journal.blocks())
    if schedule.asked != wanted:
        schedule.ask(wanted)
        manifest.ask(schedule.state())
    return trigger


def _warm_up(config: Config, menu: Menu) -> None:
    """Compile the kernels, so that no event waits for that."""
    Trigger(menu, Schedule(DEFAULT, 1)).decide(Block(0, 1, scores(config).empty(1)))


def _asked(settings: MenuConfig) -> Asked:
    return Asked(settings.prescale_column, settings.prescale_from)


def prepared(trigger: Trigger, now: Config, wanted: Config, n_writers: int) -> Callable[[OpenManifest], None]:
    """What switches to another prescale column, and enters that in the manifest.

    Raises
    ------
    UsageError
        Something else is to be changed, or the lumisection has begun.
    """
    if wanted.model_copy(update={"menu": now.menu, "replicas": now.replicas}) != now or not same_menu(
        now.menu.model_dump(mode="json"), wanted.menu.model_dump(mode="json")
    ):
        raise UsageError("only the prescale column (menu.prescale_column) can be changed while a run goes on")
    asked, schedule = _asked(wanted.menu), trigger.schedule
    if asked == _asked(now.menu):
        raise UsageError(f"the prescale column '{asked.column}' was asked for already")
    if n_writers > 1 and not now.feed.lumisection:
        raise UsageError(f"the prescale column cannot be switched: {SEVERAL}")
    if n_writers > 1 and not asked.since:
        last = schedule.last()
        soon = last[2] + 2 if last else 1
        raise UsageError(
            f"with several writers, name the lumisection from which on it holds, such as --at-lumisection {soon}"
        )

    def change(manifest: OpenManifest) -> None:
        last = schedule.last()
        schedule.ask(asked)
        manifest.ask(schedule.state())
        when = f"from lumisection {asked.since} on" if asked.since else "from the next lumisection on"
        keeps = f"; run {last[1]}, lumisection {last[2]}, which has begun, keeps '{schedule.at(last)}'" if last else ""
        log.info("prescale column '%s' %s%s", asked.column, when, keeps)

    return change


def promise(trigger: Trigger, wanted: Config) -> int:
    """The lumisection from which on a prescale column is asked for, if none has begun that it would come too late for;
    0 = from the next one on. Until all writers have agreed, no event of it is decided.

    Raises
    ------
    UsageError
        One has begun.
    """
    since = wanted.menu.prescale_from
    if since and (begun := trigger.schedule.begun_since(since)) is not None:
        raise UsageError(
            f"lumisection {begun[2]} of run {begun[1]} has begun already; the first that can have another prescale "
            f"column is {begun[2] + 1}"
        )
    return since
