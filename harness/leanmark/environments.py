"""The Python environment of another revision: this one, a named one, or one built from its lock file."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from leanmark.errors import InvalidInput, NothingToCompare
from leanmark.prepare.sources import default_store
from leanmark.processes import Code
from leanmark.revisions import Checkout

# What pins the versions of what Python imports, by how an environment is made of it.
_REQUIREMENTS = ("requirements.txt", "requirements.lock")
_CONSTRAINTS = ("constraints.txt",)
_UV = ("uv.lock",)
_OTHERS = ("pylock.toml", "poetry.lock", "pdm.lock", "Pipfile.lock", "conda-lock.yml", "environment.yml")
_LIMIT_SECONDS = 3600
_PROBE = "import leanmark.preparation"


def python_of(checkout: Checkout, named: Path | None, suite_folder: Path) -> str:
    """The interpreter that runs a revision's code: the named one, or this one where no lock file differs, or one made.

    Raises InvalidInput for a named one that cannot be used, NothingToCompare where none can be made.
    """
    if named is not None:
        problem = _problem(str(named), checkout)
        if problem:
            raise InvalidInput(
                f"the interpreter {named} cannot run leanmark: {problem}",
                do="Install leanmark there, in the version of this one.",
            )
        return str(named.absolute())
    locks = _locks(checkout, suite_folder)
    return _made(checkout, locks) if locks else sys.executable


def copied_from(checkout: Checkout) -> Iterator[tuple[str, Path]]:
    """The installed packages that pip copied from the repository, with the folder or wheel that it took (PEP 610).

    A wheel that is under version control is somebody else's, kept there.
    """
    for package in importlib.metadata.distributions():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            origin = json.loads(package.read_text("direct_url.json") or "{}")
            folder = Path(unquote(urlsplit(origin["url"]).path)).resolve()
            editable = origin.get("dir_info", {}).get("editable")
            vendored = "archive_info" in origin and checkout.has(folder)
            if folder.is_relative_to(checkout.top) and not editable and not vendored:
                yield package.name, folder


def _locks(checkout: Checkout, suite_folder: Path) -> list[Path]:
    """The revision's lock files, at its top or beside the suite; none where all of them are the work tree's."""
    names = (*_REQUIREMENTS, *_CONSTRAINTS, *_UV, *_OTHERS)
    found: list[Path] = []
    changed: list[Path] = []
    for folder in dict.fromkeys((checkout.top, suite_folder.resolve())):
        for name in names:
            own = checkout.counterpart(folder / name)
            if own is not None and own.is_file():
                found.append(own)
                changed += [own] if _content(own) != _content(folder / name) else []
    # Those of other tools count only where they tell that something is another.
    apart = (*_OTHERS, *_UV)
    return [lock for lock in found if lock in changed or lock.name not in apart] if changed else []


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _made(checkout: Checkout, locks: list[Path]) -> str:
    """An environment of the revision's own, kept under the hash of what it is made of."""
    others = [lock for lock in locks if lock.name in _OTHERS]
    if others:
        raise NothingToCompare(
            f"{others[0].name} of {checkout.revision} differs from the work tree's",
            do="Make an environment from it yourself, and name its interpreter with --base-python.",
        )
    facts = b"".join(lock.name.encode() + b"\0" + lock.read_bytes() for lock in locks)
    # The project itself is installed too, so another commit's environment is another one.
    key = hashlib.sha256(sys.version.encode() + checkout.commit.encode() + facts).hexdigest()[:20]
    root = default_store().parent / "environments" / key
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f"{key}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        python = root / "bin" / "python"
        if not (root / "complete").exists():
            shutil.rmtree(root, ignore_errors=True)
            try:
                for command in _commands(checkout, locks, root):
                    _run(command, checkout, root)
                if "No module named 'leanmark'" in _problem(str(python), checkout):  # it is installed beside the lock
                    _run([*_pip(root), _own_requirement()], checkout, root)
                if problem := _problem(str(python), checkout):
                    raise NothingToCompare(
                        f"the environment of {checkout.revision} has no leanmark that can be used: {problem}",
                        do="Let its lock file name leanmark, or name an interpreter with --base-python.",
                    )
            except BaseException:
                shutil.rmtree(root, ignore_errors=True)
                raise
            (root / "complete").touch()
    return str(python)


def _commands(checkout: Checkout, locks: list[Path], root: Path) -> list[list[str]]:
    if any(lock.name in _UV for lock in locks):
        if shutil.which("uv") is None:
            raise NothingToCompare(
                f"uv.lock of {checkout.revision} differs from the work tree's, and there is no uv here",
                do="Install uv, or name an interpreter with --base-python.",
            )
        return [
            [
                "uv",
                "sync",
                "--quiet",
                "--frozen",
                "--no-editable",
                "--project",
                str(next(lock.parent for lock in locks if lock.name in _UV)),
                "--python",
                sys.executable,
            ]
        ]
    pip = _pip(root)
    wanted: list[str] = []
    for lock in locks:
        wanted += ["-c" if lock.name in _CONSTRAINTS else "-r", str(lock)]
    if all(lock.name in _CONSTRAINTS for lock in locks):
        wanted.append(str(checkout.root))
    return [[sys.executable, "-m", "venv", str(root)], [*pip, *wanted]]


def _pip(root: Path) -> list[str]:
    return [str(root / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def _own_requirement() -> str:
    """This leanmark, as pip can install it again: from where it came, or by its version (PEP 610)."""
    own = importlib.metadata.distribution("leanmark")
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        origin = json.loads(own.read_text("direct_url.json") or "{}")
        if "vcs_info" in origin:
            return f"leanmark @ {origin['vcs_info']['vcs']}+{origin['url']}@{origin['vcs_info']['commit_id']}"
        return f"leanmark @ {origin['url']}"
    return f"leanmark=={own.version}"


def _run(command: list[str], checkout: Checkout, root: Path) -> None:
    environment = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(root)}
    # The work tree's own constraints are not the revision's.
    constraints = [item for item in environment.pop("PIP_CONSTRAINT", "").split() if not _is_within(item, checkout.top)]
    if constraints:
        environment["PIP_CONSTRAINT"] = " ".join(constraints)
    try:
        done = subprocess.run(
            command,
            cwd=checkout.root,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_LIMIT_SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise NothingToCompare(
            f"the environment of {checkout.revision} was not made within {_LIMIT_SECONDS} s",
            do="Make it yourself, and name its interpreter with --base-python.",
        ) from None
    if done.returncode:
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["it said nothing"]
        error = next((line for line in reversed(lines) if "error" in line.lower()), lines[-1])
        raise NothingToCompare(
            f"the environment of {checkout.revision} cannot be made: {error[:300]}",
            do="Make it yourself, and name its interpreter with --base-python.",
        )


def _is_within(file: str, folder: Path) -> bool:
    return Path(file).resolve().is_relative_to(folder)


def _problem(python: str, checkout: Checkout) -> str:
    """Why an interpreter cannot prepare a suite; empty where it can."""
    try:
        done = subprocess.run(
            [python, "-P", "-c", _PROBE],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=120,
            check=False,
            env={**os.environ, **Code(python, sources=checkout.sources()).environment()},
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    lines = done.stderr.strip().splitlines()
    return "" if done.returncode == 0 else (lines[-1] if lines else f"exit code {done.returncode}")
