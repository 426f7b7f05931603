"""run.toml: reading it with errors that name key, rule and value, and writing one to start from."""

import json
import re
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from common.config.model_path import names_directory
from common.config.run import OF_LANGUAGE_MODELS, RunConfig
from common.config.section import Section
from common.config.task import DataSection, PublicData, TestData
from common.errors import ConfigError
from common.records import TaskKind

Of = TypeVar("Of", bound=Section)


def load_config(path: Path) -> RunConfig:
    """Read and check a run's configuration; relative paths in it are relative to its folder.

    Raises ConfigError naming the file, the key, the rule and the value.
    """
    return anchored(load_section(path, RunConfig, "fedpft init"), path.parent.resolve())


def load_section(path: Path, model: type[Of], writer: str) -> Of:
    """Read and check a TOML file; `writer` is the command that writes one to start from.

    Raises ConfigError naming the file, the key, the rule and the value.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; `{writer}` writes one to start from") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, model)}") from None


def parse_config(settings: Mapping[str, Any], origin: str) -> RunConfig:
    """A configuration from dotted keys. Raises ConfigError that begins with `origin`."""
    raw: dict[str, Any] = {}
    for key, given in settings.items():
        *sections, name = key.split(".")
        table = raw
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = given
    try:
        return RunConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{origin}: {explain(error, RunConfig)}") from None


def parse_settings(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE settings by dotted key; a value that is not TOML is taken as text.

    Raises ConfigError for one without "=" or with a key that is not of the form section.key.
    """
    settings = {}
    for text in given:
        key, separator, value = text.partition("=")
        if not separator or not re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", key.strip()):
            raise ConfigError(f"setting {text!r} must be SECTION.KEY=VALUE, such as alignment.steps=600")
        try:
            settings[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[key.strip()] = value.strip()
    return settings


def anchored(config: RunConfig, folder: Path) -> RunConfig:
    """Resolve the paths in `config` against the folder of its file."""

    def placed(path: Path | None) -> Path | None:
        return None if path is None else folder / path

    def data(section: PublicData | TestData | None) -> Any:
        return section and section.model_copy(update={"path": placed(section.path)})

    model, sub_fm, tracking = config.model, config.sub_fm, config.tracking
    if names_directory(model.path, folder):
        model = model.model_copy(update={"path": str(folder / model.path)})
    return config.model_copy(
        update={
            "run": config.run.model_copy(update={"directory": folder / config.run.directory}),
            "model": model,
            "data": DataSection(
                root=placed(config.data.root), public=data(config.data.public), test=data(config.data.test)
            ),
            "tls": config.tls.model_copy(
                update={name: placed(getattr(config.tls, name)) for name in type(config.tls).model_fields}
            ),
            "compute": config.compute.model_copy(
                update={"offload_folder": placed(config.compute.offload_folder)}
            ),
            "sub_fm": sub_fm.model_copy(update={"path": placed(sub_fm.path)}),
            "tracking": tracking.model_copy(update={"directory": placed(tracking.directory)}),
        }
    )


_RULES = {
    "greater_than_equal": "must be >= {ge}",
    "greater_than": "must be > {gt}",
    "less_than_equal": "must be <= {le}",
    "less_than": "must be < {lt}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "finite_number": "must be finite",
    "missing": "must be set",
}


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """All that is wrong, on one line: `adapter.rank must be >= 1, got 0; …`."""
    return "; ".join(_explain_one(e, model) for e in error.errors())


def _explain_one(error: ErrorDetails, model: type[BaseModel]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key} (known there: {', '.join(_keys_beside(error['loc'], model))})"
    if error["type"] == "missing":
        return f"{key} must be set"
    if error["type"] == "value_error":
        return f"{key}: {error['ctx']['error']}".removeprefix(": ")
    rule = _RULES.get(error["type"])
    told = rule.format(**error.get("ctx", {})) if rule else f"is not valid ({error['msg']})"
    return f"{key} {told}, got {error['input']!r}"


def _keys_beside(location: tuple[int | str, ...], model: type[BaseModel]) -> list[str]:
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            break
        model = inner
    return list(model.model_fields)


def _section_of(annotation: Any) -> type[Section] | None:
    """The section class in `X` or `X | None`."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, Section):
            return candidate
    return None


def template(values: dict[str, Any]) -> str:
    """A complete commented run.toml; `values` (dotted key → value) overrides defaults.

    Keys without a value are commented out.
    """
    public = any(key.startswith("data.public.") for key in values)
    if public and values.get("task.kind") == TaskKind.CAUSAL_LM:
        usual = {f"{s}.{key}": value for s, keys in OF_LANGUAGE_MODELS.items() for key, value in keys.items()}
        values = usual | values
    first = "A run of FedPFT. Every key is here with its default; paths are relative to this file."
    return commented(RunConfig, first, values)


def commented(model: type[Section], first: str, values: Mapping[str, Any]) -> str:
    """A complete commented file of this kind, with what its first line says."""
    return "\n".join([f"# {first}", *_table(model, "", values)]) + "\n"


def _table(model: type[BaseModel], prefix: str, values: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}"
        if inner := _section_of(field.annotation):
            lines += ["", *_comment(field.description), f"[{key}]"]
            lines += _table(inner, f"{key}.", values)
            continue
        lines += _comment(field.description)
        value = values.get(key, None if field.is_required() else field.default)
        if value is None:
            lines.append(f"# {name} =")
        else:
            lines.append(f"{name} = {_toml(value)}")
    return lines


def _comment(description: str | None) -> list[str]:
    """A key's description as comment lines."""
    plain = " ".join((description or "").split())
    return textwrap.wrap(plain, 105, initial_indent="# ", subsequent_indent="# ")


def _toml(value: Any) -> str:
    """A TOML literal; JSON's strings, numbers, booleans and arrays are TOML's too.

    But for two things: TOML knows no surrogate pairs, so nothing is escaped that need not be, and
    it wants DEL escaped.
    """
    plain = list(value) if isinstance(value, tuple) else value
    return json.dumps(plain, default=str, ensure_ascii=False).replace("\x7f", "\\u007f")
