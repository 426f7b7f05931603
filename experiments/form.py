"""What an experiment consists of: its question, its variants, how large its runs are."""

from dataclasses import dataclass, field

from experiments.tuned import Settings


@dataclass(frozen=True)
class Variant:
    """A configuration to compare: keys of run.toml that differ from the experiment's common ones."""

    name: str
    title: str
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Scale:
    """How large an experiment is. `splits` are "iid" or "dirichlet-CONCENTRATION"."""

    splits: tuple[str, ...]
    seeds: int
    clients: int
    sample: int
    rounds: int
    train: int
    """Private examples over all clients; a smaller data set gives what it has."""
    test: int
    public: int = 4000
    score_every: int = 1
    settings: Settings = field(default_factory=dict)
    first_seed: int = 1
    validation: float = 0.0
    """Share of the private examples that are scored on instead of the test data, which nobody sees then."""
    trials: int = 0
    """Of a search, for each variant."""

    @property
    def all_seeds(self) -> range:
        """The seeds themselves."""
        return range(self.first_seed, self.first_seed + self.seeds)


@dataclass(frozen=True)
class Experiment:
    """A question, and what is run to answer it. `reference` is what all variants are compared with."""

    name: str
    question: str
    variants: tuple[Variant, ...]
    reference: str
    full: Scale
    quick: Scale
    settings: Settings = field(default_factory=dict)
    only_quick: tuple[str, ...] | None = None
    """Variants of the quick form; None: all."""
    is_search: bool = False
    """Whether its variants are methods whose best settings are searched for."""
    measures_steps: bool = False
    """Whether a worker's step is timed for every variant afterwards."""
    scores_before: bool = False
    """Whether both models are scored before the first round, too."""

    def scale(self, quick: bool) -> Scale:
        """The size of the full or of the quick form."""
        return self.quick if quick else self.full

    def chosen(self, quick: bool) -> tuple[str, ...]:
        """Names of the variants of the full or of the quick form."""
        return self.only_quick if quick and self.only_quick else tuple(v.name for v in self.variants)

    def variant(self, name: str) -> Variant:
        """Raises KeyError for an unknown name."""
        return {v.name: v for v in self.variants}[name]
