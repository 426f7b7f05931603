"""Which experiment trackers a run is told to."""

from pathlib import Path

from pydantic import Field, field_validator

from common.config.choices import Tracker
from common.config.section import Section


class TrackingSection(Section):
    """Experiment trackers that the run's figures are told to, never those of a single worker."""

    to: tuple[Tracker, ...] = ()
    """"tensorboard", "mlflow", or both; needs fedpft[tracking]. They may fail: the run goes on without."""
    directory: Path | None = None
    """Folder for TensorBoard's event files, and for MLflow's database where MLFLOW_TRACKING_URI names no
    server; several runs may share it. Unset: tracking in the run's directory."""
    project: str = Field(default="fedpft", min_length=1)
    """The experiment under which MLflow keeps the run; MLFLOW_EXPERIMENT_NAME goes before it."""

    @field_validator("to")
    @classmethod
    def _once(cls, given: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        if len(set(given)) < len(given):
            raise ValueError(f"must name each tracker once, got {', '.join(given)}")
        return given
