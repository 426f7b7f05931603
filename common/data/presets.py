"""The paper's data sets by name, as the hub holds them: a copy on disk, or from the hub itself."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from common.data.answers import numbers_of
from common.data.examples import Columns, Examples, join, read_examples
from common.data.hub_files import HubFiles, hub_files
from common.errors import DataError
from common.records import TaskKind
from common.task_forms import FORMS

# The hub gives this class to the examples whose labels the owner keeps.
_HIDDEN = "-1"


@dataclass(frozen=True)
class Preset:
    """A data set on the hub: Parquet files FOLDER/SPLIT-*.parquet."""

    name: str
    kind: TaskKind
    hub_id: str
    folder: str
    """Of its Parquet files; on the hub often the name of a configuration."""
    columns: Columns
    labels: tuple[str, ...]
    """Names of the classes, whose positions here the files hold; () where the files hold numbers."""
    splits: tuple[str, ...]
    train: str
    """The split that private and public data come from."""
    test: str
    """The split with labels that the paper's scores are of."""
    hidden: tuple[str, ...] = ()
    """Splits without labels."""
    metric: str = "accuracy"

    def pattern(self, split: str) -> str:
        """Its files of a split, by the hub's names."""
        return f"{self.folder}/{split}-*.parquet"


_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
# The hub's own list has the misprint "cra"; the files hold numbers only.
_CIFAR100 = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly "
    "camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup "
    "dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower "
    "leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid "
    "otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road "
    "rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower "
    "sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale "
    "willow_tree wolf woman worm"
)
_FLOWERS = (
    "pink primrose, hard-leaved pocket orchid, canterbury bells, sweet pea, english marigold, tiger lily, "
    "moon orchid, bird of paradise, monkshood, globe thistle, snapdragon, colt's foot, king protea, "
    "spear thistle, yellow iris, globe-flower, purple coneflower, peruvian lily, balloon flower, "
    "giant white arum lily, fire lily, pincushion flower, fritillary, red ginger, grape hyacinth, "
    "corn poppy, prince of wales feathers, stemless gentian, artichoke, sweet william, carnation, "
    "garden phlox, love in the mist, mexican aster, alpine sea holly, ruby-lipped cattleya, cape flower, "
    "great masterwort, siam tulip, lenten rose, barbeton daisy, daffodil, sword lily, poinsettia, "
    "bolero deep blue, wallflower, marigold, buttercup, oxeye daisy, common dandelion, petunia, wild pansy, "
    "primula, sunflower, pelargonium, bishop of llandaff, gaura, geranium, orange dahlia, "
    "pink-yellow dahlia?, cautleya spicata, japanese anemone, black-eyed susan, silverbush, "
    "californian poppy, osteospermum, spring crocus, bearded iris, windflower, tree poppy, gazania, azalea, "
    "water lily, rose, thorn apple, morning glory, passion flower, lotus, toad lily, anthurium, frangipani, "
    "clematis, hibiscus, columbine, desert-rose, tree mallow, magnolia, cyclamen, watercress, canna lily, "
    "hippeastrum, bee balm, ball moss, foxglove, bougainvillea, camellia, mallow, mexican petunia, "
    "bromelia, blanket flower, trumpet creeper, blackberry lily"
)


def _glue(name: str, text: str, pair: str | None, labels: tuple[str, ...]) -> Preset:
    return Preset(
        name,
        TaskKind.TEXT_CLASSIFICATION,
        hub_id="nyu-mll/glue",
        folder=name,
        columns=Columns(text=text, pair=pair),
        labels=labels,
        splits=("train", "validation", "test"),
        train="train",
        test="validation",
        hidden=("test",),
    )


def _images(name: str, hub_id: str, folder: str, columns: Columns, labels: tuple[str, ...]) -> Preset:
    return Preset(
        name,
        TaskKind.IMAGE_CLASSIFICATION,
        hub_id,
        folder,
        columns,
        labels,
        splits=("train", "test"),
        train="train",
        test="test",
    )


_PRESETS = (
    _glue("sst2", "sentence", None, ("negative", "positive")),
    _glue("qnli", "question", "sentence", ("entailment", "not_entailment")),
    replace(
        _glue("mnli", "premise", "hypothesis", ("entailment", "neutral", "contradiction")),
        splits=("train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"),
        test="validation_matched",
        hidden=("test_matched", "test_mismatched"),
    ),
    _glue("qqp", "question1", "question2", ("not_duplicate", "duplicate")),
    replace(_glue("cola", "sentence", None, ("unacceptable", "acceptable")), metric="matthews"),
    replace(_glue("mrpc", "sentence1", "sentence2", ("not_equivalent", "equivalent")), metric="f1"),
    replace(_glue("stsb", "sentence1", "sentence2", ()), kind=TaskKind.TEXT_REGRESSION, metric="pearson"),
    _glue("rte", "sentence1", "sentence2", ("entailment", "not_entailment")),
    _glue("wnli", "sentence1", "sentence2", ("not_entailment", "entailment")),
    _images("cifar10", "uoft-cs/cifar10", "plain_text", Columns(image="img"), tuple(_CIFAR10.split())),
    _images(
        "cifar100",
        "uoft-cs/cifar100",
        "cifar100",
        Columns(image="img", label="fine_label"),
        tuple(_CIFAR100.split()),
    ),
    replace(
        # Of the copies on the hub the one with the three splits of its authors (1,020, 1,020 and
        # 6,149 images) and their order of classes; nelorth/oxford-flowers sorts "1", "10", "100".
        _images(
            "flowers102",
            "dpdl-benchmark/oxford_flowers102",
            "data",
            Columns(),
            tuple(_FLOWERS.split(", ")),
        ),
        splits=("train", "validation", "test"),
    ),
)
PRESETS = MappingProxyType({preset.name: preset for preset in _PRESETS})


def find_preset(name_and_split: str, test: bool = False) -> tuple[Preset, str]:
    """NAME or NAME:SPLIT → the preset and the split; without one, that for training or for the test.

    Raises DataError for an unknown name or split, naming the known.
    """
    name, _, split = name_and_split.partition(":")
    if name not in PRESETS:
        raise DataError(f"there is no preset {name!r}; there are: {', '.join(PRESETS)}")
    preset = PRESETS[name]
    split = split or (preset.test if test else preset.train)
    if split not in preset.splits:
        raise DataError(f"{name} has no split {split!r}; it has: {', '.join(preset.splits)}")
    return preset, split


def is_preset(source: str) -> bool:
    """Whether this names a preset, and no path that is there."""
    return source.partition(":")[0] in PRESETS and not Path(source).exists()


def load_preset(
    name_and_split: str, root: Path | None = None, *, test: bool = False, labelled: bool = True
) -> Examples:
    """A split of a preset, with the names of its classes unless `labelled` is False.

    `name_and_split` is as for `find_preset`: "sst2", "mnli:validation_mismatched". Its files are
    looked for in `root`, which holds copies of hub repositories (ROOT/nyu-mll/glue/sst2/… or
    ROOT/glue/sst2/…), then on the hub, whose downloads stay in the hub's cache.

    Raises DataError for an unknown name or split, when the files are in neither place (with the
    command that gets them), when they cannot be read, and when the split's labels are hidden.
    """
    preset, split = find_preset(name_and_split, test)
    source = f"{preset.name}:{split}"
    files = preset_files(name_and_split, root, test=test)
    columns = preset.columns if labelled else replace(preset.columns, label=None)
    examples = join(source, [read_examples(path, columns, preset.kind) for path in files])
    if examples.label_names is None:
        return examples
    if split in preset.hidden:
        raise _without_labels(preset, source)
    if not FORMS[preset.kind].named:
        numbers_of(examples)
        return examples
    return replace(examples, label_names=list(_named(preset, source, examples)))


def preset_files(name_and_split: str, root: Path | None = None, *, test: bool = False) -> list[Path]:
    """The files of a split of a preset, in order, as `load_preset` finds them. Raises DataError."""
    preset, split = find_preset(name_and_split, test)
    return hub_files(f"{preset.name}:{split}", HubFiles(preset.hub_id, preset.pattern(split)), root)


def _without_labels(preset: Preset, source: str) -> DataError:
    usable = ", ".join(split for split in preset.splits if split not in preset.hidden)
    return DataError(f"{source} has no labels: its owner keeps them; use another split: {usable}")


def _named(preset: Preset, source: str, examples: Examples) -> Iterator[str]:
    """The classes' names for the numbers that the hub's files hold."""
    names = {str(i): label for i, label in enumerate(preset.labels)}
    for row, label in enumerate(examples.label_names or ()):
        if label == _HIDDEN:
            raise _without_labels(preset, source)
        if label not in names:
            classes = len(preset.labels)
            raise DataError(
                f"{examples.name_of(row)} has label {label!r}; there are {classes} classes from 0"
            )
        yield names[label]
