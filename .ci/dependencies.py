"""What the pinned packages are (a bill of materials, CycloneDX) and whether any is known to be vulnerable.

Usage: python .ci/dependencies.py ENVIRONMENT OUT_FILE

The tools live in an environment of their own, ENVIRONMENT-audit. Where they, or the list of known
vulnerabilities, cannot be reached, that is said and is no failure. A vulnerable package is one, with
exit code 3; an entry of .ci/ignored-vulnerabilities, with its reason, lifts that.
"""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

TOOLS = ("pip-audit==2.10.1", "cyclonedx-bom==7.5.0")
_SECONDS = 120
VULNERABLE = 3
ROOT = Path(__file__).parents[1]


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    """A command's result, whatever it is; 124 when it takes longer than two minutes, as it may offline."""
    # The project's pins are not the tools'.
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    parts = [str(part) for part in command]
    try:
        return subprocess.run(parts, capture_output=True, text=True, timeout=_SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(parts, 124, "", f"no answer within {_SECONDS} s")


def tools(folder: Path) -> Path | None:
    """Where the tools are; None when they cannot be installed."""
    programs = folder / "bin"
    if not (programs / "pip-audit").exists():
        venv.create(folder, with_pip=True, clear=True)
        done = run(programs / "python", "-m", "pip", "install", "--quiet", "--retries", "1", *TOOLS)
        if done.returncode:
            print(f"skipped: {', '.join(TOOLS)} cannot be installed here: {done.stderr.strip()[-300:]}")
            return None
    return programs


def ignored() -> list[str]:
    """Identifiers of vulnerabilities that do not concern this project; "#" begins the reason."""
    path = ROOT / ".ci" / "ignored-vulnerabilities"
    lines = path.read_text().splitlines() if path.exists() else []
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def materials(programs: Path, environment: Path, out: Path) -> None:
    """Write the bill of materials, and check that every installed package is in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    python = environment / "bin" / "python"
    arguments = ["environment", python, "--pyproject", ROOT / "pyproject.toml", "--of", "JSON", "-o", out]
    done = run(programs / "cyclonedx-py", *arguments)
    if done.returncode:
        sys.exit(f"the bill of materials cannot be made: {done.stderr.strip()[-500:]}")
    named = {c["name"].lower().replace("_", "-") for c in json.loads(out.read_text())["components"]}
    listed = json.loads(run(python, "-m", "pip", "list", "--format", "json").stdout)
    missing = {p["name"].lower().replace("_", "-") for p in listed} - named - {"fedpft"}
    if missing:
        sys.exit(f"not in the bill of materials: {', '.join(sorted(missing))}")
    print(f"bill of materials: {out}, {len(named)} packages")


def vulnerabilities(programs: Path) -> None:
    """Look every pinned package up."""
    ignore = [part for name in ignored() for part in ("--ignore-vuln", name)]
    pinned = ["-r", ROOT / "constraints.txt", "--no-deps", "--disable-pip"]
    done = run(programs / "pip-audit", *pinned, *ignore, "--timeout", "15", "--format", "json")
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"skipped: the list of vulnerabilities cannot be reached: {done.stderr.strip()[-300:]}")
        return
    audited = [package for package in found if "vulns" in package]
    if not audited:
        print("skipped: the list of vulnerabilities knows none of the packages here; nothing was looked up")
        return
    bad = [(p["name"], p["version"], v["id"]) for p in audited for v in p["vulns"]]
    for name, version, identifier in bad:
        print(f"{name} {version}: {identifier}")
    print(f"vulnerabilities: {len(bad)} in {len(audited)} of {len(found)} packages that were looked up")
    if bad:
        sys.exit(VULNERABLE)


def main() -> None:
    """Both, where they can be had."""
    environment, out = Path(sys.argv[1]).absolute(), Path(sys.argv[2])
    programs = tools(environment.with_name(f"{environment.name}-audit"))
    if programs is not None:
        materials(programs, environment, out)
        vulnerabilities(programs)


if __name__ == "__main__":
    main()
