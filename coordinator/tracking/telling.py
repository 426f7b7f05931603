"""Tells a run's trackers what they do not have yet, again and again; none of them can end it."""

import logging
from collections.abc import Callable
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory

from accelerate.tracking import GeneralTracker

from common.config.choices import Tracker
from common.config.tracking import TrackingSection
from common.errors import FedPftError
from common.records import Phase
from coordinator.campaign.status import open_run
from coordinator.tracking import trackers
from coordinator.tracking.figures import Figure, Parameter, figures, parameters
from coordinator.tracking.told import Told

log = logging.getLogger(__name__)

# Writes the report of a run's directory into a folder.
Report = Callable[[Path, Path], None]


class _Told:
    """One tracker of a run, and what it was told."""

    def __init__(self, which: Tracker, section: TrackingSection, folder: Path) -> None:
        self.which, self._section = which, section
        self.told = Told.read(folder / f"{which}.json")
        self.tracker: GeneralTracker | None = None
        self.failing = False

    def tell(self, run_id: str, settings: dict[str, Parameter], found: list[Figure]) -> None:
        """Whatever it does not hold. Raises anything."""
        if self.tracker is None:
            self.tracker = trackers.opened(self.which, run_id, self._section, self.told)
        if not self.told.parameters:
            self.tracker.store_init_configuration(settings)
            self.told.parameters = True
            self.told.save()
        new = [figure for figure in found if not self.told.holds(figure)]
        for number, of_round in groupby(new, key=lambda figure: figure.round):
            these = list(of_round)
            self.tracker.log({figure.name: figure.value for figure in these}, step=number)
            self.told.add(these)
        if new:
            self.told.save()


class Telling:
    """All trackers of the run in a directory."""

    def __init__(self, directory: Path, section: TrackingSection, report: Report) -> None:
        self._directory, self._report = directory, report
        folder = directory / "tracking"
        folder.mkdir(exist_ok=True)
        section = section.model_copy(update={"directory": section.directory or folder})
        trackers.set_up(section)
        self._each = [_Told(which, section, folder) for which in section.to]
        self._seen = -1
        self._outcome: Phase | None = None

    @property
    def failing(self) -> bool:
        """Whether any tracker could not be told all at the last look."""
        return any(each.failing for each in self._each)

    def look(self, last: bool = False) -> None:
        """Tell what has happened since the last look; the `last` one goes through all. Raises StoreError."""
        store, config = open_run(self._directory)
        with closing(store):
            # Where an event was not kept, for the disk was full, nothing seems to have happened.
            if (seen := store.events.last()) == self._seen and not (last or self.failing):
                return
            run_id, outcome, adapters = store.run_id(), store.outcome(), store.adapters()
            found = figures(store, config)
        self._outcome = Phase(outcome) if outcome else None
        settings = parameters(config)
        newest = adapters[max(adapters)] if self._outcome is Phase.FINISHED else None
        for each in self._each:
            self._guarded(each, partial(self._tell, each, run_id, settings, found, newest))
        self._seen = seen

    def close(self) -> None:
        """Nothing more is told by this process."""
        for each in self._each:
            if each.tracker is not None:
                self._guarded(each, partial(trackers.close, each.which, each.tracker, self._outcome))

    def _tell(
        self,
        each: _Told,
        run_id: str,
        settings: dict[str, Parameter],
        found: list[Figure],
        adapter: str | None,
    ) -> None:
        """What it lacks, and, with a finished run's `adapter`, the report, once. Raises anything."""
        each.tell(run_id, settings, found)
        if adapter is None or each.told.report == adapter or not trackers.takes_files(each.which):
            return
        assert each.tracker is not None
        with TemporaryDirectory(prefix="fedpft-report-") as folder:
            try:
                self._report(self._directory, Path(folder))
            except FedPftError as error:
                log.info("%s gets no report: %s", each.which, error)
                return
            trackers.keep_report(each.tracker, Path(folder))
        each.told.report = adapter
        each.told.save()

    def _guarded(self, each: _Told, work: Callable[[], None]) -> None:
        """A tracker may raise anything, and none is worth a run: said once, and tried again at each look."""
        try:
            work()
        except Exception as error:
            if not each.failing:
                told = " ".join(str(error).split())[:300] or type(error).__name__
                log.warning("%s cannot be told of the run, which goes on without: %s", each.which, told)
            each.failing = True
        else:
            if each.failing:
                log.info("%s takes what it is told again, and what it had missed", each.which)
            each.failing = False
