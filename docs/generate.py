"""Writes docs/configuration.md and docs/commands.md from the code that reads settings and options, so that
neither can diverge.

`make docs` runs it, `make docs-check` fails when a file in git is not what it writes.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import typer
from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from typer.models import ArgumentInfo, OptionInfo

from cli.main import GROUPS, app
from common.config.file import explain
from common.config.run import RunConfig
from common.observability.console import EXIT_FAILED, EXIT_USAGE
from worker.policy import Policy

HERE = Path(__file__).parent

INTRO = """\
<!-- Made by docs/generate.py from common/config/. Do not edit; run `make docs`. -->
# Configuration

## run.toml

One TOML file describes a run. Only the coordinator reads it. Workers get what they need from the
coordinator when they join. `fedpft init` writes a complete file with every key, its default and
what it does. Relative paths are relative to the file. An unknown key is an error. Every error names
the file, the key, the rule and the value.

A run's directory remembers its configuration. The same directory with other settings is refused,
except for `run.directory` and everything in `[server]`, `[tls]`, `[admission]`, `[limits]` and `[tracking]`.
[Commands](commands.md) has every command and option.
"""

COMMANDS = """\
<!-- Made by docs/generate.py from the commands. Do not edit; run `make docs`. -->
# Commands

`fedpft COMMAND --help` shows the same at a terminal. [Configuration](configuration.md) has the keys of
`run.toml`.

`fedpft-coordinator` and `fedpft-worker` are the same as `fedpft coordinator` and `fedpft worker`, for hosts
that run only one of them.

In a new shell after `fedpft --install-completion`, Tab completes commands, options and their values.
"""

POLICY = """
## policy.toml

What the owner of a worker's data allows, for `fedpft worker --policy`; `fedpft worker policy` writes a
complete file with every key. An unknown key is an error. [workers](workers.md) says what comes of it.
"""

NAMES = {str: "text", int: "whole number", float: "number", bool: "true or false", Path: "path"}
SIGNS: tuple[tuple[Any, str, str], ...] = (
    (Ge, "ge", "≥ {}"),
    (Gt, "gt", "> {}"),
    (Le, "le", "≤ {}"),
    (Lt, "lt", "< {}"),
    (MinLen, "min_length", "at least {}"),
)

# Settings that break a rule between keys; what they are told is the rule's description.
MINIMAL: dict[str, Any] = {"model": {"path": "m"}, "task": {"labels": ["a", "b"]}}
ALLOWED: dict[str, Any] = MINIMAL | {"alignment": {"steps": 0}}
BY_WORKER: dict[str, Any] = {"weights": "equal", "dp": {"unit": "worker"}}
SUMMED: dict[str, Any] = {"secure": True, "insecure_keys": True}
PUBLIC: dict[str, Any] = {"data": {"public": {"path": "p.csv"}}}
BREAKING: tuple[dict[str, Any], ...] = (
    ALLOWED | {"task": {"labels": ["a"]}},
    ALLOWED | {"task": {"labels": ["a", "a"]}},
    ALLOWED | {"task": {"kind": "causal-lm", "labels": ["a", "b"]}},
    ALLOWED | {"task": {"kind": "image-classification", "labels": ["a", "b"], "pairs": True}},
    ALLOWED | {"data": {"test": {"path": "t.csv", "preset": "sst2"}}},
    ALLOWED | {"data": {"test": {"path": "t.csv"}}, "task": {"labels": ["a", "b"], "pairs": True}},
    MINIMAL,
    ALLOWED | {"sub_fm": {"saliency": "activation"}},
    ALLOWED | PUBLIC | {"realignment": {"drift": 0.5}, "gradient_gap": {"batches": 0}},
    ALLOWED | {"task": {"kind": "causal-lm"}, "adapter": {"targets": "none"}},
    ALLOWED | {"rounds": {"workers": 2, "minimum": 3}},
    ALLOWED | {"sub_fm": {"attention_rank": 8, "construction": "full"}},
    ALLOWED | PUBLIC | {"alignment": {"keep_margin": 0.5, "method": "both"}},
    ALLOWED | {"sub_fm": {"quantization": "int8"}, "adapter": {"targets": "neurons"}},
    ALLOWED | {"aggregation": {"weights": "target-tokens"}},
    ALLOWED | {"aggregation": {"lora": "exact", "rule": "median"}},
    ALLOWED | {"privacy": {"dp": {"unit": "worker"}}},
    ALLOWED | {"privacy": BY_WORKER, "aggregation": {"rule": "median"}},
    ALLOWED | {"privacy": BY_WORKER, "aggregation": {"norm_limit": 3.0}},
    ALLOWED | {"privacy": BY_WORKER, "aggregation": {"lora": "exact"}},
    ALLOWED | {"privacy": BY_WORKER | {"dp": {"unit": "worker", "delta": 0.5}}},
    ALLOWED | {"privacy": BY_WORKER | {"dp": {"unit": "worker", "clip_quantile": 0.5}}},
    ALLOWED | {"privacy": BY_WORKER | SUMMED | {"ring": 64}, "rounds": {"minimum": 3}},
    ALLOWED | {"aggregation": {"lora": "exact"}, "adapter": {"targets": "neurons"}},
    ALLOWED
    | PUBLIC
    | {
        "aggregation": {"lora": "exact"},
        "adapter": {"targets": "attention+ffn"},
        "realignment": {"every": 1},
    },
    ALLOWED | {"compute": {"device_map": "auto"}, "aggregation": {"lora": "exact"}},
    ALLOWED | {"compute": {"device_map": {"layers.0": "disk"}}},
    ALLOWED | {"rounds": {"patience": 2}},
    ALLOWED | {"rounds": {"best_by": "pearson"}},
    ALLOWED | {"validation": {"every": 1}, "rounds": {"workers": 1}},
    ALLOWED | {"admission": {"workers": ["a"]}},
    ALLOWED | {"tls": {"key": "tls.key"}},
    ALLOWED | {"tls": {"revoked": "revoked.pem"}},
)


def flat(description: str | None) -> str:
    """On one line."""
    return " ".join((description or "").split())


def rule(annotation: Any, metadata: list[Any]) -> str:
    """A type and its bounds for people, such as "whole number, ≥ 1"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return rule(inner[0], [*inner[1:], *metadata])
    if origin in (Union, UnionType):
        return " or ".join(rule(part, metadata) for part in inner if part is not NoneType)
    bounds = [m for given in metadata for m in (given.metadata if isinstance(given, FieldInfo) else [given])]
    told = [
        sign.format(getattr(m, name)) for m in bounds for kind, name, sign in SIGNS if isinstance(m, kind)
    ]
    if origin is Literal:
        kind = " or ".join(f'`"{value}"`' for value in inner)
    elif inspect.isclass(annotation) and issubclass(annotation, Enum):
        kind = " or ".join(f'`"{member.value}"`' for member in annotation)
    elif origin in (list, tuple):
        kind = f"list of {rule(inner[0], [])}"
    elif origin is dict:
        kind = f"table of {rule(inner[1], [])}"
    else:
        kind = NAMES[annotation]
    return ", ".join([kind, *told])


def value(default: Any) -> str:
    """A default, as one would write it."""
    match default:
        case None:
            return "unset"
        case () | []:
            return "none"
        case bool():
            return f"`{str(default).lower()}`"
        case str() | Path():
            return f'`"{getattr(default, "value", default)}"`'
        case _:
            return f"`{default}`"


def row(*cells: str) -> str:
    """A line of a table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section in `X` or `X | None`, None for a key."""
    for candidate in (annotation, *get_args(annotation)):
        if inspect.isclass(candidate) and issubclass(candidate, BaseModel):
            return candidate
    return None


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """A table of the model's own keys, then its sections, each with a heading."""
    fields = model.model_fields.items()
    if keys := [(name, f) for name, f in fields if section_of(f.annotation) is None]:
        yield "\n| key | type and rule | default | what it is |\n|---|---|---|---|"
        for name, f in keys:
            default = "required" if f.is_required() else value(f.default)
            yield row(f"`{name}`", rule(f.annotation, f.metadata), default, flat(f.description))
    for name, f in fields:
        if inner := section_of(f.annotation):
            yield f"\n### `[{prefix}{name}]`\n\n{flat(f.description)}"
            yield from sections(inner, f"{prefix}{name}.")


def relations() -> Iterator[str]:
    """The rules between keys, in the words in which a user meets them."""
    yield "\n### Rules between keys\n"
    for broken in BREAKING:
        try:
            RunConfig.model_validate(broken)
        except ValidationError as error:
            yield f"- {explain(error, RunConfig)}"
        else:
            raise AssertionError(f"no longer against a rule: {broken}")


def placeholders(parameters: Iterable[Any]) -> Iterator[str]:
    """What may follow a command's name: options, then arguments by name."""
    yield "[OPTIONS]"
    for parameter in parameters:
        if parameter.param_type_name == "argument":
            name = (parameter.metavar or parameter.name.upper()) + ("..." if parameter.nargs < 0 else "")
            yield name.replace("......", "...") if parameter.required else f"[{name}]"


def command(function: Callable[..., None], program: str, name: str | None = None) -> Iterator[str]:
    """A command by the name that it is called by: what it does, and a table of its options."""
    called = f"{program} {name or function.__name__.replace('_', '-')}"
    parameters = inspect.signature(function).parameters
    alone = typer.Typer(add_completion=False)
    alone.command()(function)
    made = typer.main.get_command(alone)
    spelled = {str(p.name): p.opts for p in made.params}
    synopsis = " ".join([called, *placeholders(made.params)])
    yield f"\n### `{called}`\n\n```\n{synopsis}\n```\n\n{inspect.getdoc(function)}"
    if not parameters:
        return
    yield "\n| option | type and rule | default | what it is |\n|---|---|---|---|"
    for name, hint in get_type_hints(function, include_extras=True).items():
        if name == "return" or hint is typer.Context:
            continue
        annotation, info = get_args(hint)
        assert isinstance(info, OptionInfo | ArgumentInfo)
        option = isinstance(info, OptionInfo)
        shown = ", ".join(f"`{name}`" for name in (spelled[name] if option else [name.upper()]))
        bounds: list[Any] = [] if info.min is None else [Ge(info.min)]
        # "[default: …]" in a help text tells a default that is worked out when the command runs.
        what, _, worked_out = (info.help or "").partition(" [default: ")
        default = parameters[name].default
        if default is inspect.Parameter.empty:
            told = "required"
        elif worked_out:
            told = worked_out.removesuffix("]")
        else:
            told = "off" if default is False else value(default)
        kind = "switch" if annotation is bool else info.metavar or rule(annotation, bounds)
        yield row(shown, kind, told, what)


def sub_commands(group: typer.Typer) -> Iterator[str]:
    """The commands of `fedpft GROUP`; first the group itself, where it is a command, too."""
    if group.registered_callback is not None and group.registered_callback.callback is not None:
        yield from command(group.registered_callback.callback, "fedpft", str(group.info.name))
    for known in group.registered_commands:
        assert known.callback is not None
        yield from command(known.callback, f"fedpft {group.info.name}", known.name)


def exit_codes() -> Iterator[str]:
    """What a command's exit code tells."""
    yield "\n## Exit codes\n\n| code | meaning |\n|---|---|"
    yield row("0", "Done; a service ended by SIGTERM, too.")
    yield row(str(EXIT_FAILED), "The run failed, or a mistake in the program (with a traceback).")
    yield row(str(EXIT_USAGE), "Any other error, in one line on standard error: a setting, a file, the peer.")
    yield row("130", "Ended by SIGINT (Ctrl-C).")
    yield row("128 + n", "Ended by another signal, number n, or by a second one, which ends it at once.")


def of_the_program() -> Iterator[str]:
    """The options of `fedpft` itself."""
    yield "\n## `fedpft`\n\n| option | what it is |\n|---|---|"
    for option in typer.main.get_command(app).params:
        yield row(", ".join(f"`{name}`" for name in option.opts), flat(getattr(option, "help", None)))


def configuration() -> str:
    """configuration.md."""
    return (
        "\n".join([INTRO.rstrip(), *sections(RunConfig), *relations(), POLICY.rstrip(), *sections(Policy)])
        + "\n"
    )


def commands() -> str:
    """commands.md."""
    lines = [COMMANDS.rstrip(), *of_the_program()]
    for group, members in GROUPS.items():
        lines.append(f"\n## {group}")
        for member in members:
            lines += sub_commands(member) if isinstance(member, typer.Typer) else command(member, "fedpft")
    return "\n".join([*lines, *exit_codes()]) + "\n"


if __name__ == "__main__":
    (HERE / "configuration.md").write_text(configuration(), encoding="utf-8")
    (HERE / "commands.md").write_text(commands(), encoding="utf-8")
