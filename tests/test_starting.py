"""What `leanmark init` and the action give a repository: it works, and it trusts nobody who need not be trusted."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from leanmark import __version__
from playing import ROOT, STARTERS, commented, read, run_step, steps
from running import leanmark

PINNED = re.compile(r"^[\w.-]+/[\w./-]+@[0-9a-f]{40}$")
WORKFLOWS = [STARTERS / "gate.yml", STARTERS / "pages.yml", ROOT / ".github" / "workflows" / "gate.yml"]


def test_init_writes_what_is_missing_and_nothing_else(tmp_path: Path):
    first = leanmark("init", cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {
        "leanmark.yaml",
        "baselines/README.md",
        ".github/workflows/leanmark.yml",
        ".github/workflows/leanmark-pages.yml",
    }
    (tmp_path / "leanmark.yaml").write_text("mine\n")
    again = leanmark("init", "--gitlab", cwd=tmp_path)
    assert "Left as it is: leanmark.yaml" in again.stdout
    assert (tmp_path / "leanmark.yaml").read_text() == "mine\n"
    for path in (".gitlab/leanmark.yml", ".github/workflows/leanmark.yml"):
        installs = [line for line in (tmp_path / path).read_text().splitlines() if "pip install" in line]
        assert installs
        assert all(f"leanmark=={__version__}" in line for line in installs)
    assert leanmark("init", "nowhere", cwd=tmp_path).returncode == 2


def test_the_suite_that_it_writes_is_one(tmp_path: Path):
    assert leanmark("init", cwd=tmp_path).returncode == 0
    done = leanmark("plan", "leanmark.yaml", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "lenet-5/int8/" in done.stdout


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / "action.yml"], ids=lambda path: path.name)
def test_every_action_is_pinned_by_its_hash(path: Path):
    used = [step["uses"] for step in steps(path) if "uses" in step]
    assert used
    assert not [name for name in used if name != "./" and not PINNED.match(name)]


@pytest.mark.parametrize("path", [*WORKFLOWS, ROOT / "action.yml"], ids=lambda path: path.name)
def test_no_text_from_outside_is_pasted_into_a_script(path: Path):
    for step in steps(path):
        assert "${{" not in step.get("run", "")
        assert "${{" not in step.get("with", {}).get("script", "")


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_who_runs_foreign_code_may_write_nothing(path: Path):
    document = read(path)
    assert document["permissions"] == {}
    for job in document["jobs"].values():
        runs_code = any(
            "leanmark run" in step.get("run", "") or step.get("with", {}).get("mode") == "measure"
            for step in job["steps"]
        )
        if runs_code:
            assert job["permissions"] == {"contents": "read"}
            assert "secrets." not in str(job)
        for step in job["steps"]:
            if step.get("uses", "").startswith("actions/checkout@"):
                assert step["with"]["persist-credentials"] is False
                assert runs_code or step["with"]["ref"] == "${{ github.base_ref }}"


SCRIPTS = [
    (STARTERS / "gate.yml", "comment.md", "<!-- gate/judge -->"),
    (ROOT / "action.yml", "leanmark.md", "<!-- gate/judge/leanmark-runs -->"),
]


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node to run a workflow's script")
@pytest.mark.parametrize(("path", "file", "mine"), SCRIPTS, ids=["starter", "action"])
def test_the_comment_is_replaced_and_withdrawn(path: Path, file: str, mine: str, tmp_path: Path):
    bodies = [("User", f"mine -->\n{mine}"), ("Bot", "other -->\n<!-- other/judge -->"), ("Bot", f"mine -->\n{mine}")]
    all_three = [
        {"id": number, "user": {"type": kind}, "body": f"<!-- leanmark gate {text}\n### Passed"}
        for number, (kind, text) in enumerate(bodies, 1)
    ]
    (tmp_path / "temp").mkdir()

    def played(comments: list[dict[str, Any]]) -> list[tuple[int | None, str]]:
        return commented(path, comments, tmp_path, tmp_path / "temp")

    (tmp_path / "temp" / file).write_text("<!-- leanmark gate mine -->\n### Failed: `mine`\n")
    shown = f"<!-- leanmark gate mine -->\n{mine}\n### Failed: `mine`\n"
    assert played(all_three) == [(3, shown)]
    assert played(all_three[:2]) == [(None, shown)], "another job's comment stays"
    (tmp_path / "temp" / file).unlink()  # nothing could be judged
    (tmp_path / file).write_text("a file of the pull request's own")
    ((number, body),) = played(all_three)
    assert number == 3
    assert body.startswith(f"<!-- leanmark gate mine -->\n{mine}\n### Not judged")
    assert "/actions/runs/5" in body
    assert played(all_three[:2]) == []


def test_the_jobs_of_gitlab_hand_documents_on(tmp_path: Path):
    """Played with git and a leanmark that only says how it was called: measured, judged, published."""
    document = read(STARTERS / "gitlab.yml")
    assert document["leanmark-judge"]["variables"]["GIT_STRATEGY"] == "none"
    assert document["leanmark-judge"]["needs"] == ["leanmark-measure"]
    origin, work, stubs = tmp_path / "origin", tmp_path / "work", tmp_path / "bin"
    stubs.mkdir()
    lines = [
        'echo "$*" >> "$CALLS"',
        '[ "$1" = run ] || exit 0',
        "mkdir -p runs/7/one",
        "echo page > runs/7/one/index.html",
    ]
    for name, text in {"pip": "exit 0\n", "leanmark": "\n".join([*lines, "exit 5\n"])}.items():
        (stubs / name).write_text(f"#!/bin/sh\n{text}")
        (stubs / name).chmod(0o755)
    identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *identity, *arguments], cwd=origin, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def played(job: str, base: str) -> tuple[int, list[str]]:
        calls = tmp_path / "calls"
        calls.write_text("")
        environment = {
            **os.environ,
            "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
            "CALLS": str(calls),
            "CI_PIPELINE_ID": "7",
            "CI_MERGE_REQUEST_DIFF_BASE_SHA": base,
            "CI_MERGE_REQUEST_TARGET_BRANCH_NAME": "main",
            "CI_REPOSITORY_URL": str(origin),
        }
        script = "set -eo pipefail\n" + "\n".join(document[job]["script"])
        done = subprocess.run(["bash", "-c", script], cwd=work, env=environment, capture_output=True, check=False)
        return done.returncode, calls.read_text().splitlines()

    origin.mkdir()
    git("init", "--quiet", "--initial-branch=main")
    git("commit", "--quiet", "--allow-empty", "--message", "without a suite")
    bare = git("rev-parse", "HEAD")
    (origin / "leanmark.yaml").write_text("suite: mine\n")
    git("add", "--all")
    git("commit", "--quiet", "--message", "with one")
    base = git("rev-parse", "HEAD")
    subprocess.run(["git", "clone", "--quiet", str(origin), str(work)], check=True)
    assert played("leanmark-measure", bare) == (0, []), "there is nothing to compare with yet"
    assert played("leanmark-judge", bare) == (0, [])
    assert played("leanmark-measure", "0" * 40)[0] != 0, "a base that was not fetched is no new suite"
    assert played("leanmark-measure", base) == (0, [f"run leanmark.yaml --base {base} --out runs/7"])
    judging = "gate latest --out runs/7 --baselines target/baselines --junit junit.xml --markdown comment.md"
    assert played("leanmark-judge", base) == (0, [judging])
    assert played("pages", base) == (0, ["run leanmark.yaml --out runs/7"])
    assert (work / "public" / "index.html").read_text() == "page\n"


@pytest.mark.parametrize("path", [STARTERS / "gate.yml", ROOT / "action.yml"], ids=["starter", "action"])
def test_a_change_is_measured_beside_where_it_parted_and_a_missing_base_is_no_new_suite(path: Path, tmp_path: Path):
    (script,) = (step["run"] for step in steps(path) if step.get("id") == "measure")
    origin, work, stubs = tmp_path / "origin", tmp_path / "work", tmp_path / "bin"
    stubs.mkdir()
    (stubs / "leanmark").write_text('#!/bin/sh\necho "called $*"\nexit 5\n')
    (stubs / "leanmark").chmod(0o755)

    def git(folder: Path, *arguments: str) -> str:
        identity = ("-c", "user.name=tester", "-c", "user.email=tester@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    def commit(folder: Path, name: str) -> str:
        (folder / name).write_text("suite: mine\n")
        git(folder, "add", "--all")
        git(folder, "commit", "--quiet", "--message", name)
        return git(folder, "rev-parse", "HEAD")

    def measured() -> tuple[int, str, str]:
        branch = "main" if path.parent == STARTERS else "origin/main"
        environment = {
            "PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}",
            "BASE": branch,
            "SUITE": "leanmark.yaml",
            "ARGUMENTS": "",
            "GITHUB_OUTPUT": str(tmp_path / "output"),
        }
        (tmp_path / "output").write_text("")
        done = run_step(script, work, **environment)
        return done.returncode, done.stdout, (tmp_path / "output").read_text()

    origin.mkdir()
    git(origin, "init", "--quiet", "--initial-branch=main")
    commit(origin, "first")
    git(tmp_path, "clone", "--quiet", str(origin), "work")
    commit(work, "leanmark.yaml")
    code, said, output = measured()
    assert (code, output) == (0, "")
    assert "::notice::" in said
    parted = commit(origin, "leanmark.yaml")
    git(work, "fetch", "--quiet")
    git(work, "reset", "--quiet", "--hard", "origin/main")
    commit(work, "change")
    commit(origin, "meanwhile")
    git(work, "fetch", "--quiet")
    code, said, output = measured()
    assert (code, output) == (0, "measured=true\n"), "a cell that failed is judged"
    assert f"--base {parted}" in said
    git(work, "branch", "--remotes", "--delete", "origin/main")
    code, said, output = measured()
    assert (code, output) == (2, "")
    assert "::error::there is no origin/main here" in said
