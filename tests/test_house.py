"""The policy of the house: how long files are, how many things a constructor takes, what names say."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = 350
PARAMETERS = 6
# A frozen dataclass with more methods that do work than these is a class like any other.
METHODS_OF_A_RECORD = 2
# They say that things are together, not what they are.
VAGUE = {"util", "utils", "helper", "helpers", "misc", "manager", "managers"}


def git_files(pattern: str) -> list[Path]:
    """Paths in git, relative to the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not in a clone: which files are ours is git's to say")
    done = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True, check=True)
    # One that was removed and not committed yet is still listed.
    return [path for name in done.stdout.splitlines() if (ROOT / (path := Path(name))).exists()]


def sources() -> list[Path]:
    """Our own Python files, without tests and generated ones."""
    return [
        path
        for path in git_files("*.py")
        if path.parts[0] != "tests" and not path.stem.endswith(("_pb2", "_pb2_grpc"))
    ]


def text(path: Path) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# Sizes.


def test_a_source_file_is_at_most_350_lines_long() -> None:
    assert not {str(p): n for p in sources() if (n := len(text(p).splitlines())) > LINES}


def constructor(kind: ast.ClassDef) -> int:
    """How many parameters its constructor has, without self; of a record, none."""
    methods = [part for part in kind.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
    for method in methods:
        if method.name == "__init__":
            given = method.args
            return len(given.posonlyargs) + len(given.args) - 1 + len(given.kwonlyargs)
    decorators = [ast.unparse(decorator) for decorator in kind.decorator_list]
    dataclass = next((d for d in decorators if d.partition("(")[0].endswith("dataclass")), None)
    # What is one expression, its docstring aside, looks something up.
    work = [m for m in methods if len(m.body) - (ast.get_docstring(m) is not None) > 1]
    if dataclass is None or ("frozen=True" in dataclass and len(work) <= METHODS_OF_A_RECORD):
        return 0
    fields = [part for part in kind.body if isinstance(part, ast.AnnAssign)]
    own = ("ClassVar", "init=False")
    return sum(not any(word in ast.unparse(field) for word in own) for field in fields)


def constructors(source: str) -> Iterator[tuple[str, int]]:
    """Every class, and how many parameters its constructor has."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            yield node.name, constructor(node)


def test_a_constructor_takes_at_most_six_parameters() -> None:
    found = {f"{path}: {name}": n for path in sources() for name, n in constructors(text(path))}
    assert len(found) > 100
    assert not {name: n for name, n in found.items() if n > PARAMETERS}


WORKING = "".join(f"    def m{i}(self):\n        self.a()\n        self.b()\n" for i in range(3))


@pytest.mark.parametrize(
    ("source", "parameters"),
    [
        ("class A:\n    def __init__(self, a, b=1, *, c, **d): ...", 3),
        ("@dataclass(frozen=True)\nclass A:\n    a: int\n    b: int", 0),
        ("@dataclass(frozen=True)\nclass A:\n    a: int\n" + WORKING, 1),
        ("@dataclass\nclass A:\n    a: int\n    b: int = field(init=False)\n    c: ClassVar[int] = 1", 1),
        ("class A:\n    a: int", 0),
    ],
    ids=["its own", "a record", "a record that works", "a dataclass", "none"],
)
def test_parameters_of_constructors_are_counted(source: str, parameters: int) -> None:
    assert list(constructors(source)) == [("A", parameters)]


# Names.


def test_no_name_of_a_file_or_folder_is_vague() -> None:
    words = {path: set("_".join(path.with_suffix("").parts).split("_")) for path in git_files("*.py")}
    assert not [str(path) for path in words if VAGUE & words[path]]


def test_no_package_takes_a_name_of_the_standard_library() -> None:
    packages = {path.parts[0] for path in sources() if len(path.parts) > 1}
    assert packages >= {"cli", "common", "coordinator", "experiments", "worker"}
    assert not packages & sys.stdlib_module_names


def test_every_package_says_what_it_is() -> None:
    folders = {path.parent for path in sources() if path.parts[0] not in (".ci", "docs", "proto")}
    missing = [f for f in folders if not (ROOT / f / "__init__.py").is_file()]
    assert not missing
    assert not [str(f) for f in folders if not ast.get_docstring(ast.parse(text(f / "__init__.py")))]


# Which way imports go. What keeps them is .importlinter; that it does is shown on a copy.


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What import-linter reads, and nothing else."""
    for path in [Path(".importlinter"), *sources(), *git_files("proto/*.py")]:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, tmp_path / path)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).with_name("lint-imports")
    # Only the copy's packages: an editable installation has ours on the path, too, but behind these.
    environment = os.environ | {"PYTHONPATH": f"{folder}:{folder / 'proto'}", "COLUMNS": "200"}
    command = [program, "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_imports_go_one_way(copy: Path) -> None:
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        (
            "coordinator/storage/store.py",
            "from coordinator.campaign import loop",
            "Inside the coordinator, imports run down one street",
        ),
        (
            "common/runtime/seeds.py",
            "from common.transport import rpc",
            "Inside common, imports run down one street",
        ),
        (
            "common/model/ffn.py",
            "import worker.train",
            "benchmarks | cli | fedpft_api -> experiments -> coordinator | worker -> common -> fedpft",
        ),
        ("worker/train.py", "from fedpft.v1 import types_pb2", "Protobuf stops at the wire"),
        ("coordinator/algorithms/saliency.py", "import time", "The maths knows no gRPC"),
        ("coordinator/federation/rounds.py", "import torch", "The state machines know no gRPC"),
        ("common/secagg/masks.py", "import time", "Secure aggregation's protocol knows no gRPC"),
    ],
    ids=[
        "within the coordinator",
        "within common",
        "between packages",
        "protobuf",
        "maths",
        "state machine",
        "secure aggregation",
    ],
)
def test_an_import_that_goes_up_is_refused(copy: Path, module: str, line: str, contract: str) -> None:
    path = copy / module
    path.write_text(f"{path.read_text()}\n{line}\n")
    done = lint_imports(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    broken = [said for said in done.stdout.splitlines() if said.startswith(contract) and "BROKEN" in said]
    assert broken, done.stdout


# Releases.


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("deploy/helm/fedpft/Chart.yaml", r"^(?:version|appVersion): (.+)$"),
        ("deploy/helm/fedpft/values.yaml", r"image: fedpft-\w+:(.+)$"),
        ("docs/deployment.md", r"fedpft-(?:\w+:)?(\d+\.\d+\.\d+)"),
        ("CITATION.cff", r"^version: (.+)$"),
        ("CONTRIBUTING.md", r"(?:FedPFT |\bv|fedpft-\w+:)(\d+\.\d+\.\d+)"),
    ],
)
def test_the_version_is_the_same_wherever_it_stands(path: str, pattern: str) -> None:
    version = tomllib.loads(text(Path("pyproject.toml")))["project"]["version"]
    assert set(re.findall(pattern, text(Path(path)), re.MULTILINE)) == {version}


def test_the_changelog_tells_of_this_version() -> None:
    version = tomllib.loads(text(Path("pyproject.toml")))["project"]["version"]
    assert f"\n## [{version}] - " in text(Path("CHANGELOG.md"))


# The map.


@pytest.mark.parametrize("package", ["common", "coordinator", "worker", "experiments", "fedpft_api"])
def test_the_architecture_page_has_a_place_for_every_file(package: str) -> None:
    page = text(Path("docs/architecture.md"))
    named = {Path(name).name for name in re.findall(r"`([\w/]+(?:\.py|/))`", page)}
    files = [p for p in sources() if p.parts[0] == package and p.name not in ("__init__.py", "__main__.py")]
    # A folder that stands there as a whole speaks for its files.
    missing = [str(p) for p in files if p.name not in named and p.parent.name not in ("page", "report")]
    assert files and not missing
