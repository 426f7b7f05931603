"""Presets are read from copies in the hub's layout, and say what to do when there is none."""

import io
import shlex
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from huggingface_hub import constants
from PIL import Image
from pyarrow import parquet

from common.data import hub_files
from common.data.answers import numbers_of
from common.data.examples import Examples
from common.data.presets import PRESETS, find_preset, load_preset
from common.errors import DataError
from common.records import TaskKind


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, **columns: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return path


def write_copy(root: Path, name: str, split: str, labels: list[int], folder: str | None = None) -> Path:
    """Files of a split as the hub has them: one row per label, two rows in a file."""
    preset = PRESETS[name]
    parts = [range(start, min(start + 2, len(labels))) for start in range(0, len(labels), 2)]
    for shard, part in enumerate(parts):
        columns: dict[str, list[Any]] = {"idx": list(part)}
        if preset.kind is TaskKind.IMAGE_CLASSIFICATION:
            columns[preset.columns.image] = [{"bytes": png(i), "path": f"{i}.png"} for i in part]
        else:
            columns[preset.columns.text] = [f"text {i} " for i in part]
        if preset.columns.pair is not None:
            columns[preset.columns.pair] = [f"pair {i}" for i in part]
        assert preset.columns.label is not None
        columns[preset.columns.label] = [labels[i] for i in part]
        path = root / (folder or preset.hub_id) / preset.folder
        write(path / f"{split}-0000{shard}-of-0000{len(parts)}.parquet", **columns)
    return root


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.labels])
def test_every_preset_of_classes_is_read_with_the_names_of_its_classes(tmp_path: Path, name: str) -> None:
    preset = PRESETS[name]
    last = len(preset.labels) - 1
    write_copy(tmp_path, name, preset.train, [0, last, 1])
    write_copy(tmp_path, name, preset.test, [last])
    examples = load_preset(name, tmp_path)
    first, second, final = preset.labels[0], preset.labels[1], preset.labels[last]
    assert examples.label_names == [first, final, second]
    assert examples.class_indices(preset.labels) == [0, last, 1]
    if preset.kind is TaskKind.IMAGE_CLASSIFICATION:
        assert examples.images == [png(0), png(1), png(2)]
    else:
        assert examples.texts == ["text 0 ", "text 1 ", "text 2 "]
        pairs = None if preset.columns.pair is None else ["pair 0", "pair 1", "pair 2"]
        assert examples.pairs == pairs
    assert load_preset(name, tmp_path, test=True).label_names == [final]


def test_class_names_are_distinct_and_as_many_as_the_data_has() -> None:
    counts = {name: len(set(preset.labels)) for name, preset in PRESETS.items()}
    assert counts == {
        "sst2": 2,
        "qnli": 2,
        "mnli": 3,
        "qqp": 2,
        "cola": 2,
        "mrpc": 2,
        "stsb": 0,
        "rte": 2,
        "wnli": 2,
        "cifar10": 10,
        "cifar100": 100,
        "flowers102": 102,
    }
    for preset in PRESETS.values():
        assert len(preset.labels) == len(set(preset.labels))
        assert {preset.train, preset.test} <= set(preset.splits) - set(preset.hidden)


def test_glue_is_whole_and_each_of_its_tasks_has_its_own_score() -> None:
    """By GLUE (Wang et al. 2019), table 1; the order of classes is the hub's."""
    glue = {name: preset for name, preset in PRESETS.items() if preset.hub_id == "nyu-mll/glue"}
    assert len(glue) == 9
    assert {name: preset.metric for name, preset in glue.items() if preset.metric != "accuracy"} == {
        "cola": "matthews",
        "mrpc": "f1",
        "stsb": "pearson",
    }
    pairs = {name for name, preset in glue.items() if preset.columns.pair is not None}
    assert pairs == glue.keys() - {"sst2", "cola"}
    assert glue["rte"].labels == ("entailment", "not_entailment")
    assert glue["wnli"].labels == ("not_entailment", "entailment")


def write_stsb(root: Path, split: str, labels: list[float]) -> Path:
    """As the hub has it: scores in float32."""
    values = pyarrow.array(labels, pyarrow.float32())
    texts = {f"sentence{i}": [f"text {i}"] * len(labels) for i in (1, 2)}
    folder = root / "nyu-mll" / "glue" / "stsb"
    write(folder / f"{split}-00000-of-00001.parquet", **texts, label=values, idx=list(range(len(labels))))
    return root


def test_a_preset_of_numbers_is_read_as_it_stands(tmp_path: Path) -> None:
    write_stsb(tmp_path, "train", [5.0, 3.8, 0.0])
    write_stsb(tmp_path, "validation", [2.5])
    examples = load_preset("stsb", tmp_path)
    assert numbers_of(examples) == [5.0, 3.8, 0.0]
    assert examples.pairs == ["text 2"] * 3
    assert numbers_of(load_preset("stsb", tmp_path, test=True)) == [2.5]


def test_a_preset_of_numbers_has_splits_without_them(tmp_path: Path) -> None:
    write_stsb(tmp_path, "test", [-1.0, -1.0])
    with pytest.raises(DataError, match=r"stsb:test has no labels.*use another split: train, validation$"):
        load_preset("stsb:test", tmp_path)
    assert not load_preset("stsb:test", tmp_path, labelled=False).labelled


def test_a_split_may_be_named_and_is_not_mistaken_for_one_that_begins_alike(tmp_path: Path) -> None:
    write_copy(tmp_path, "mnli", "validation_matched", [0])
    write_copy(tmp_path, "mnli", "validation_mismatched", [2, 2])
    assert load_preset("mnli:validation_mismatched", tmp_path).label_names == ["contradiction"] * 2
    assert load_preset("mnli", tmp_path, test=True).label_names == ["entailment"]
    assert load_preset("mnli:validation_mismatched", tmp_path).source == "mnli:validation_mismatched"


def test_a_copy_may_lie_without_its_owners_name(tmp_path: Path) -> None:
    write_copy(tmp_path, "sst2", "train", [1], folder="glue")
    assert load_preset("sst2", tmp_path).label_names == ["positive"]


def test_a_row_is_named_with_the_file_that_holds_it(tmp_path: Path) -> None:
    write_copy(tmp_path, "cifar10", "train", [0, 1, 2, 3])
    assert load_preset("cifar10", tmp_path).name_of(2).endswith("train-00001-of-00002.parquet: row 1")
    write_copy(tmp_path, "sst2", "train", [0, 1, 1, 2])
    with pytest.raises(
        DataError, match=r"train-00001-of-00002\.parquet: row 2 has label '2'; there are 2 classes from 0"
    ):
        load_preset("sst2", tmp_path)


def test_a_split_whose_labels_are_hidden_says_which_has_them_and_serves_unlabelled(tmp_path: Path) -> None:
    write_copy(tmp_path, "mnli", "test_matched", [-1, -1])
    with pytest.raises(
        DataError,
        match=r"mnli:test_matched has no labels.*use another split: "
        r"train, validation_matched, validation_mismatched$",
    ):
        load_preset("mnli:test_matched", tmp_path)
    unlabelled = load_preset("mnli:test_matched", tmp_path, labelled=False)
    assert unlabelled.texts == ["text 0 ", "text 1 "] and unlabelled.label_names is None


def test_an_unknown_name_or_split_names_the_known() -> None:
    with pytest.raises(DataError, match="there is no preset 'sst3'; there are: sst2, qnli, mnli, qqp"):
        load_preset("sst3:train", None)
    with pytest.raises(DataError, match="cifar10 has no split 'validation'; it has: train, test"):
        find_preset("cifar10:validation")
    assert find_preset("qnli") == (PRESETS["qnli"], "train")
    assert find_preset("qnli", test=True) == (PRESETS["qnli"], "validation")
    assert find_preset("qnli:test", test=True) == (PRESETS["qnli"], "test")


def test_a_copy_that_lacks_a_file_of_the_split_is_refused(tmp_path: Path) -> None:
    write_copy(tmp_path, "sst2", "train", [0, 1, 0, 1, 0])
    (tmp_path / "nyu-mll/glue/sst2/train-00001-of-00003.parquet").unlink()
    with pytest.raises(DataError, match=r"glue/sst2, split train, holds 2 of 3 files"):
        load_preset("sst2", tmp_path)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert constants.HF_HUB_OFFLINE
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("empty_cache")
def test_offline_the_error_holds_the_command_that_puts_the_files_where_they_are_found(
    tmp_path: Path,
) -> None:
    root = tmp_path / "data sets"
    root.mkdir()
    with pytest.raises(DataError, match=r"sst2:train is neither in .* nor in the hub's cache") as caught:
        load_preset("sst2", root)
    assert "\n" not in str(caught.value)
    command = shlex.split(str(caught.value).partition("run: ")[2])
    assert command[:5] == ["hf", "download", "--repo-type", "dataset", "nyu-mll/glue"]
    options = dict(zip(command[5::2], command[6::2], strict=True))
    # What the command would do.
    (pattern, folder) = options["--include"], Path(options["--local-dir"])
    name = pattern.replace("*", "00000-of-00001")
    write(folder / name, sentence=["a"], label=[1])
    assert load_preset("sst2", root).label_names == ["positive"]


@pytest.mark.usefixtures("empty_cache")
def test_without_a_folder_the_error_says_to_name_one() -> None:
    with pytest.raises(DataError, match=r"--local-dir DATA/uoft-cs/cifar10, and name DATA as the folder"):
        load_preset("cifar10")


def test_a_folder_that_is_not_there_is_no_missing_download(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone: no such folder of data sets"):
        load_preset("sst2", tmp_path / "gone")


def test_what_is_not_on_disk_comes_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any]] = []

    def download(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options))
        return str(write_copy(tmp_path / "hub", "qqp", "validation", [1, 0]) / repo_id)

    monkeypatch.setattr(hub_files, "snapshot_download", download)
    (tmp_path / "root").mkdir()
    examples = load_preset("qqp", tmp_path / "root", test=True)
    assert examples == Examples(
        "qqp:validation", ["text 0 ", "text 1 "], ["pair 0", "pair 1"], None, ["duplicate", "not_duplicate"]
    )
    expected = {"repo_type": "dataset", "revision": None, "allow_patterns": ["qqp/validation-*.parquet"]}
    assert asked == [("nyu-mll/glue", expected)]


def test_a_cache_without_the_files_of_the_split_is_no_success(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_files, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(DataError, match="sst2:train is not in the hub's cache"):
        load_preset("sst2")
