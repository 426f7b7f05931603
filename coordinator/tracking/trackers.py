"""TensorBoard and MLflow, by accelerate's trackers: opened so that a run goes on where it was, and read back.

Both may raise anything; `telling` takes it.
"""

import os
from pathlib import Path

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker

from common.config.choices import Tracker
from common.config.tracking import TrackingSection
from common.records import Phase
from coordinator.tracking.told import Told, Values

# By it a run is found whose name was not written down before its process died.
_RUN_TAG = "fedpft.run"
_MLFLOW_STATUS = {Phase.FINISHED: "FINISHED", Phase.FAILED: "FAILED"}
# Unless the environment says otherwise: a server that does not answer is asked again at the next look,
# nobody is told who uses MLflow, and its tables are made without a word.
_MLFLOW_DEFAULTS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}


def opened(which: Tracker, run_id: str, section: TrackingSection, told: Told) -> GeneralTracker:
    """The tracker, begun; `told` gets the name under which it has the run, and what it holds of it."""
    # accelerate's own log lines want it; nothing is computed here.
    PartialState(cpu=True)
    if which is Tracker.TENSORBOARD:
        told.add_found(_in_event_files(_folder(section) / run_id))
        tracker: GeneralTracker = TensorBoardTracker(run_id, _folder(section))
    else:
        told.run = told.run or _mlflow_run(run_id, section)
        told.save()
        told.add_found(_in_mlflow(told.run))
        tracker = MLflowTracker(_experiment(section), run_id=told.run)
    tracker.start()
    return tracker


def takes_files(which: Tracker) -> bool:
    """Whether a report can be kept there."""
    return which is Tracker.MLFLOW


def keep_report(tracker: GeneralTracker, folder: Path) -> None:
    """Keep a folder as the run's report."""
    tracker.log_artifacts(str(folder), "report")


def close(which: Tracker, tracker: GeneralTracker, outcome: Phase | None) -> None:
    """End the tracker's run as the run itself has ended; None: it can go on."""
    if which is Tracker.MLFLOW:
        import mlflow

        mlflow.end_run(_MLFLOW_STATUS.get(outcome, "KILLED") if outcome else "KILLED")
    tracker.finish()


def _in_event_files(folder: Path) -> Values:
    """What TensorBoard's files hold, also one that a process died over."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    # 0: all of them.
    held = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    held.Reload()
    return {name: {e.step: e.value for e in held.Scalars(name)} for name in held.Tags()["scalars"]}


def _in_mlflow(run: str) -> Values:
    from mlflow import MlflowClient

    client = MlflowClient()
    names = client.get_run(run).data.metrics
    return {name: {m.step: m.value for m in client.get_metric_history(run, name)} for name in names}


def _experiment(section: TrackingSection) -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME", section.project)


def _mlflow_run(run_id: str, section: TrackingSection) -> str:
    """The id that MLflow has for the run: a new one, or that which a process died over."""
    from mlflow import MlflowClient

    client, name = MlflowClient(), _experiment(section)
    known = client.get_experiment_by_name(name)
    if known is None:
        # Beside our own database; else where its server has its files.
        own = os.environ["MLFLOW_TRACKING_URI"] == _own_database(section)
        files = (_folder(section) / "mlflow-artifacts").as_uri() if own else None
        experiment = client.create_experiment(name, artifact_location=files)
    else:
        experiment = known.experiment_id
    found = client.search_runs([experiment], filter_string=f"tags.`{_RUN_TAG}` = '{run_id}'")
    made = found[0] if found else client.create_run(experiment, run_name=run_id, tags={_RUN_TAG: run_id})
    return str(made.info.run_id)


def set_up(section: TrackingSection) -> None:
    """Where MLflow keeps what it is told, and its manners; before it is imported."""
    for name, value in _MLFLOW_DEFAULTS.items():
        os.environ.setdefault(name, value)
    if Tracker.MLFLOW in section.to and "MLFLOW_TRACKING_URI" not in os.environ:
        _folder(section).mkdir(parents=True, exist_ok=True)
        os.environ["MLFLOW_TRACKING_URI"] = _own_database(section)


def _own_database(section: TrackingSection) -> str:
    return f"sqlite:///{_folder(section) / 'mlflow.db'}"


def _folder(section: TrackingSection) -> Path:
    assert section.directory is not None
    return section.directory.resolve()
