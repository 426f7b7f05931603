"""Identity by content: a run's model and data are known by digests of their files, wherever these lie."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.config.run import RunConfig
from common.config.task import DataSource, TestData
from common.data.presets import preset_files
from common.errors import ConfigError, DataError, ModelError
from common.listing import first_few
from common.storage.files import digest_of, sha256_of
from coordinator.modelling.data import examples_of
from coordinator.modelling.foundation import hub_revision
from coordinator.storage.store import Store

log = logging.getLogger(__name__)

MODEL = "the foundation model"
# What of a model's folder makes the model, its tokenizer or image processor: not its card, nor other weights.
_OF_A_MODEL = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")


def require_same(store: Store, config: RunConfig, names: Iterable[str] | None = None) -> None:
    """Compare what lies where the configuration says with what the run was begun with; at first, note it.

    Blocking: reads the files. `names` are the parts to compare; None, all. Raises ConfigError, naming what
    differs; ModelError, DataError when something is not there.
    """
    begun = store.content()
    found = content_of(config, names)
    if begun is None:
        if names is None:
            store.commit_content(found)
        if store.sub_model() is not None:
            log.warning("this run was begun by a version that did not note its content; what is here counts")
        return
    different = [
        told
        for name in (sorted(begun.keys() | found.keys()) if names is None else names)
        if (told := _difference(name, begun.get(name), found.get(name)))
    ]
    if different:
        raise ConfigError(
            f"{store.directory} holds a run that was begun with something else: {'; '.join(different)}. "
            "Restore that, or begin anew in another run.directory"
        )


def content_of(config: RunConfig, names: Iterable[str] | None = None) -> dict[str, dict[str, str]]:
    """Digests by file, of each part of a run by name. Raises ModelError, DataError."""
    data, sub_fm = config.data, config.sub_fm.path
    parts = {MODEL: lambda: _model(config.model.path)}
    if data.public is not None:
        parts["the public data"] = lambda: _data(data.public, config)
    if data.test is not None:
        parts["the test data"] = lambda: _data(data.test, config)
    if sub_fm is not None:
        parts["the built sub-FM"] = lambda: _files(sub_fm, ("*.json", "*.safetensors"))
    wanted = parts.keys() if names is None else names
    return {name: parts[name]() for name in parts if name in wanted}


def _model(path: str) -> dict[str, str]:
    folder = Path(path)
    if folder.is_dir():
        return _files(folder, _OF_A_MODEL)
    return {path: hub_revision(path)}


def _files(folder: Path, patterns: Iterable[str]) -> dict[str, str]:
    try:
        found = sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()})
        return {file.name: sha256_of(file) for file in found}
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror or error}") from error


def _data(source: DataSource | None, config: RunConfig) -> dict[str, str]:
    assert source is not None
    try:
        if source.preset is not None:
            files = preset_files(source.preset, config.data.root, test=isinstance(source, TestData))
            return {source.preset: digest_of(files)}
        assert source.path is not None
        if not source.path.exists():
            # As whoever reads it says.
            examples_of(source, config)
        # Without its name: a file that was renamed is the same data.
        return {"": digest_of([source.path])}
    except OSError as error:
        raise DataError(f"{source.path}: cannot be read: {error.strerror or error}") from error


def _difference(name: str, begun: Mapping[str, str] | None, found: Mapping[str, str] | None) -> str | None:
    """What differs, for people; None when nothing does."""
    if begun == found:
        return None
    if begun is None or found is None:
        return f"{name} {'is new' if begun is None else 'is not there any more'}"
    files = sorted(key for key in begun.keys() | found.keys() if begun.get(key) != found.get(key) and key)
    told = f" ({first_few(files, 3)})" if files else ""
    return f"{name} has another content{told}"
