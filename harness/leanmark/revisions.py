"""Another revision of a repository beside the work tree, as git has it.

The work tree, the index and the current branch stay as they are: the revision is
checked out into a worktree of its own outside of the repository, which is gone
afterwards.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import psutil

from leanmark.errors import InvalidInput, did_you_mean

_TIMEOUT_SECONDS = 600
_SHOW_PATH = "import sys; print(*sys.path, sep=chr(10))"
# Inside of a hook these make git look elsewhere than in the folder that it is asked about.
_OF_A_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY")


@dataclass(frozen=True)
class Checkout:
    """A revision in a folder.

    top: the repository's work tree. root: where the revision lies.
    """

    revision: str
    commit: str
    top: Path
    root: Path

    def counterpart(self, path: Path) -> Path | None:
        """Where a file of the work tree lies in the revision; None for files outside of the repository."""
        resolved = path.resolve()
        return self.root / resolved.relative_to(self.top) if resolved.is_relative_to(self.top) else None

    def tracked(self, module: str, *folders: Path) -> str:
        """A file under version control that would be the source of a module of this name, were it not installed.

        Looked for at the top, in ``src`` and in some more folders; empty where there is none.
        """
        places = [self.top, self.top / "src", *(folder.resolve() for folder in folders)]
        parts = Path(*module.split("."))
        files = [place / file for place in places for file in (parts.with_suffix(".py"), parts / "__init__.py")]
        inside = [str(file.relative_to(self.top)) for file in files if file.is_relative_to(self.top)]
        with contextlib.suppress(_GitError):
            return _git(self.top, "--literal-pathspecs", "ls-files", "--", *inside).partition("\n")[0]
        return ""

    def has(self, path: Path) -> bool:
        """Whether a file of the work tree is under version control."""
        with contextlib.suppress(_GitError):
            return bool(_git(self.top, "--literal-pathspecs", "ls-files", "--", str(path.relative_to(self.top))))
        return False

    def sources(self) -> tuple[Path, ...]:
        """The revision's own folders in place of those that a child process imports from the work tree.

        Such as an editable installation's; what is installed by copying is no part of the work tree.
        """
        done = subprocess.run([sys.executable, "-P", "-c", _SHOW_PATH], capture_output=True, text=True, check=True)
        prefix = Path(sys.prefix).resolve()
        found: list[Path] = []
        for entry in map(Path, filter(None, done.stdout.splitlines())):
            own = self.counterpart(entry)
            if own is not None and own.is_dir() and not entry.resolve().is_relative_to(prefix):
                found.append(own)
        return tuple(dict.fromkeys(found))


@contextlib.contextmanager
def checkout(folder: Path, revision: str, *, dirty: bool = False) -> Generator[Checkout]:
    """Check a revision of the repository that holds `folder` out, for a while.

    dirty: also where the work tree has changes that are in no commit. Raises InvalidInput: no git, no
    repository, no such revision, a shallow clone that lacks it, a work tree with changes.
    """
    top = _top(folder)
    commit = _commit(top, revision)
    try:
        changes = _git(top, "status", "--porcelain", "--untracked-files=no")
    except _GitError as error:
        raise InvalidInput(f"git cannot tell its state: {error}", where=top) from error
    if changes and not dirty:
        raise InvalidInput(
            "the work tree has changes that are in no commit; a verdict on it would be one on no revision",
            where=top,
            do="Commit or stash them, or measure them as they are with --dirty.",
        )
    _clear_up(top)
    with tempfile.TemporaryDirectory(prefix=f"leanmark-base-{os.getpid()}-") as scratch:
        root = Path(scratch).resolve() / top.name
        try:
            try:
                _git(top, "worktree", "add", "--quiet", "--detach", str(root), commit)
            except _GitError as error:
                raise InvalidInput(f"{revision} cannot be checked out: {error}", where=top) from error
            if (root / ".gitmodules").exists():
                with contextlib.suppress(_GitError):  # what is then missing is said by what needs it
                    _git(root, "submodule", "update", "--init", "--recursive", "--quiet")
            yield Checkout(revision, commit, top, root)
        finally:
            try:
                _git(top, "worktree", "remove", "--force", "--force", str(root))
            except _GitError:
                shutil.rmtree(root, ignore_errors=True)
                with contextlib.suppress(_GitError):
                    _git(top, "worktree", "prune")


def _clear_up(top: Path) -> None:
    """Remove worktrees that a run left behind which could not end in its own way."""
    with contextlib.suppress(_GitError):
        for line in _git(top, "worktree", "list", "--porcelain").splitlines():
            found = re.fullmatch(r"worktree (.*/leanmark-base-(\d+)-\w+)/[^/]+", line)
            if found is not None and not psutil.pid_exists(int(found[2])):
                with contextlib.suppress(_GitError):
                    _git(top, "worktree", "remove", "--force", "--force", line.removeprefix("worktree "))
                shutil.rmtree(found[1], ignore_errors=True)


class _GitError(Exception):
    """What git said when it failed."""


def _git(folder: Path, *arguments: str) -> str:
    """What git prints. Raises _GitError, InvalidInput where there is no git."""
    environment = {key: value for key, value in os.environ.items() if key not in _OF_A_HOOK}
    try:
        done = subprocess.run(
            # Neither a repository's hooks nor its monitors are ours to run, and its index is not ours to refresh.
            ["git", "-C", str(folder), "-c", f"core.hooksPath={os.devnull}", "-c", "core.fsmonitor=false", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_SECONDS,
            check=False,
            env={**environment, "GIT_TERMINAL_PROMPT": "0", "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
        )
    except FileNotFoundError:
        raise InvalidInput(
            "there is no git on this machine, and a revision can only be had from it",
            do="Install git, or gate against a stored baseline with --baseline.",
        ) from None
    except subprocess.TimeoutExpired:
        raise _GitError(f"git {arguments[0]} did not end within {_TIMEOUT_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise _GitError(lines[-1] if lines else f"git ended with exit code {done.returncode}")
    return done.stdout.strip()


def _top(folder: Path) -> Path:
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel")).resolve()
    except _GitError as error:
        raise InvalidInput(
            f"is in no git repository ({error}), so there is no revision to compare with",
            where=folder,
            do="Gate against a stored baseline with --baseline, or put the suite under version control.",
        ) from error


def _commit(top: Path, revision: str) -> str:
    if not revision.startswith("-"):  # an option to git
        with contextlib.suppress(_GitError):
            return _git(top, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    shallow = ""
    with contextlib.suppress(_GitError):
        shallow = _git(top, "rev-parse", "--is-shallow-repository")
    if shallow == "true":
        raise InvalidInput(
            f"this clone is shallow and does not have the revision '{revision}'",
            where=top,
            do="Fetch its history first: git fetch --unshallow (on GitHub, `fetch-depth: 0` of actions/checkout).",
        )
    names: list[str] = []
    with contextlib.suppress(_GitError):
        names = _git(top, "for-each-ref", "--format=%(refname:short)").splitlines()
    raise InvalidInput(f"there is no revision '{revision}'", where=top, do=did_you_mean(revision, names[:1000]))
