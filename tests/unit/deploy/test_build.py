# SPDX-License-Identifier: GPL-2.0-or-later
"""The pjsua2 build's decisions: where from, under which key, and what it says when it cannot.

Nothing is compiled here, and nothing outside of a temporary folder is changed.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.interop.lab.ports import free_port

DEPLOY = Path(__file__).resolve().parents[3] / "deploy" / "pjsua2"
sys.path.insert(0, str(DEPLOY))
cache: Any = importlib.import_module("pjbuild.cache")
debian: Any = importlib.import_module("pjbuild.debian")
source: Any = importlib.import_module("pjbuild.source")
Progress: Any = importlib.import_module("pjbuild.progress").Progress
BuildError: type[Exception] = importlib.import_module("pjbuild.errors").BuildError

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="the build is for Linux")


@pytest.fixture
def progress(tmp_path: Path) -> Any:
    return Progress(8, tmp_path / "log")


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A copy of the build's folder that a test may change."""
    return Path(
        shutil.copytree(DEPLOY, tmp_path / "recipe", ignore=shutil.ignore_patterns("__pycache__"))
    )


def archive_of(path: Path, version_mak: str) -> Path:
    data = version_mak.encode()
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo("pjproject/version.mak")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return path


def version_mak(major: str, minor: str, revision: str = "") -> str:
    return (
        "# Don't change the style\n"
        f"export PJ_VERSION_MAJOR  := {major}\n"
        f"export PJ_VERSION_MINOR  := {minor}\n"
        f"export PJ_VERSION_REV    := {revision}\n"
        "export PJ_VERSION_SUFFIX :=\n"
    )


# --- the cache


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"PJSUA2_CACHE": "{tmp}/mine", "HOME": "{tmp}"}, "{tmp}/mine"),
        ({"XDG_CACHE_HOME": "{tmp}/xdg"}, "{tmp}/xdg/sip-realtime-gateway/pjsua2"),
        ({"HOME": "{tmp}"}, "{tmp}/.cache/sip-realtime-gateway/pjsua2"),
        ({"HOME": "{tmp}", "XDG_CACHE_HOME": "rel"}, "{tmp}/.cache/sip-realtime-gateway/pjsua2"),
        ({"HOME": ""}, "{tmp}/project/.cache/pjsua2"),
        ({}, "{tmp}/project/.cache/pjsua2"),
        ({"HOME": "{tmp}/file/home"}, "{tmp}/project/.cache/pjsua2"),
    ],
)
def test_cache_folder_follows_the_environment(
    tmp_path: Path, env: dict[str, str], expected: str
) -> None:
    (tmp_path / "file").touch()
    filled = {key: value.replace("{tmp}", str(tmp_path)) for key, value in env.items()}
    found = cache.cache_root(filled, tmp_path / "project")
    assert str(found) == expected.replace("{tmp}", str(tmp_path))


def test_configuration_changes_both_keys(recipe: Path) -> None:
    library = cache.library_key(recipe, "2.17", "ab" * 32)
    finished = cache.wheel_key(recipe, "2.17")
    with (recipe / "config_site.h").open("a") as file:
        file.write("#define PJSUA_MAX_CALLS 2000\n")
    assert cache.library_key(recipe, "2.17", "ab" * 32) != library
    assert cache.wheel_key(recipe, "2.17") != finished


def test_native_code_changes_the_wheel_and_keeps_the_compiled_library(recipe: Path) -> None:
    library = cache.library_key(recipe, "2.17", "ab" * 32)
    finished = cache.wheel_key(recipe, "2.17")
    (recipe / "native" / "port.cpp").write_text("int port;\n")
    assert cache.library_key(recipe, "2.17", "ab" * 32) == library
    assert cache.wheel_key(recipe, "2.17") != finished


def test_words_about_the_build_change_no_key(recipe: Path) -> None:
    finished = cache.wheel_key(recipe, "2.17")
    (recipe / "README.md").write_text("other words\n")
    assert cache.wheel_key(recipe, "2.17") == finished


def test_compiler_flags_of_the_person_are_part_of_the_key(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = cache.wheel_key(recipe, "2.17")
    monkeypatch.setenv("PJSUA2_CFLAGS", "-DPJSUA_MAX_CALLS=2048")
    assert cache.wheel_key(recipe, "2.17") != finished


def test_a_sanitized_build_has_keys_of_its_own(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = cache.wheel_key(recipe, "2.17")
    library = cache.library_key(recipe, "2.17", "ab" * 32)
    monkeypatch.setenv("PJSUA2_SANITIZE", "1")
    assert cache.wheel_key(recipe, "2.17") != finished
    assert cache.library_key(recipe, "2.17", "ab" * 32) != library


def test_newest_wheel_of_this_recipe_is_found_and_no_other(recipe: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache"
    assert cache.finished_wheel(root, recipe) is None
    for version in ("2.17", "2.17.1", "2.9"):
        folder = root / "wheels" / cache.wheel_key(recipe, version)
        folder.mkdir(parents=True)
        (folder / f"pjsua2_gateway-{version}.whl").touch()
    other = root / "wheels" / cache.wheel_key(recipe, "3.0").replace("cp3", "cp2")
    other.mkdir()
    (other / "pjsua2_gateway-3.0.whl").touch()
    assert cache.finished_wheel(root, recipe).name == "pjsua2_gateway-2.17.1.whl"


def test_unwritable_cache_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(BuildError, match=r"cannot write the cache .*PJSUA2_CACHE"),
        cache.locked(tmp_path / "file" / "cache"),
    ):
        pass


def test_old_work_is_removed(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(30):
        path = logs / f"{number}.log"
        path.touch()
        os.utime(path, (number, number))
    cache.prune(tmp_path)
    assert sorted(int(path.stem) for path in logs.iterdir()) == list(range(10, 30))


# --- the source


def test_version_is_read_with_and_without_revision(tmp_path: Path) -> None:
    (tmp_path / "version.mak").write_text(version_mak("2", "17"))
    assert source.version_of(tmp_path) == "2.17"
    (tmp_path / "version.mak").write_text(version_mak("2", "17", "1"))
    assert source.version_of(tmp_path) == "2.17.1"


def test_tree_that_is_no_pjproject_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"has no version\.mak"):
        source.version_of(tmp_path)
    (tmp_path / "version.mak").write_text("VERSION=1\n")
    with pytest.raises(BuildError, match="cannot tell"):
        source.version_of(tmp_path)


def test_old_source_is_refused_and_newer_taken(tmp_path: Path, progress: Any) -> None:
    def unpacked(minor: str) -> str:
        path = archive_of(tmp_path / f"{minor}.tar.gz", version_mak("2", minor))
        found = source.Source(path, "", "an archive")
        return str(source.unpack(found, tmp_path / f"tree-{minor}", progress))

    with pytest.raises(BuildError, match=r"an archive is pjproject 2\.16; 2\.17 or later"):
        unpacked("16")
    assert unpacked("18") == "2.18"


def test_archive_is_taken_only_with_its_own_hash(
    tmp_path: Path, progress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = archive_of(tmp_path / "pjproject.tar.gz", version_mak("2", "17"))
    monkeypatch.setenv("PJSUA2_SOURCE", "archive")
    monkeypatch.setenv("PJSUA2_ARCHIVE", str(path))
    with pytest.raises(BuildError, match="needs PJSUA2_ARCHIVE_SHA256"):
        source.fetch(tmp_path / "sources", progress)
    monkeypatch.setenv("PJSUA2_ARCHIVE_SHA256", "0" * 64)
    with pytest.raises(BuildError, match=r"SHA-256 is .* pinned is 0000"):
        source.fetch(tmp_path / "sources", progress)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setenv("PJSUA2_ARCHIVE_SHA256", digest)
    assert source.fetch(tmp_path / "sources", progress).sha256 == digest


def test_unreachable_archive_is_named(
    tmp_path: Path, progress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"http://127.0.0.1:{free_port('127.0.0.1')}/pjproject.tar.gz"
    monkeypatch.setenv("PJSUA2_SOURCE", "archive")
    monkeypatch.setenv("PJSUA2_ARCHIVE", url)
    monkeypatch.setenv("PJSUA2_ARCHIVE_SHA256", "0" * 64)
    with pytest.raises(BuildError, match=f"cannot reach {url}: .*refused"):
        source.fetch(tmp_path / "sources", progress)
    assert list((tmp_path / "sources").iterdir()) == []


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt-get")
@pytest.mark.skipif(
    debian.distribution().get("ID") not in ("debian", "ubuntu"), reason="Debian and Ubuntu only"
)
def test_unreachable_mirror_is_named(
    tmp_path: Path, progress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = f"http://127.0.0.1:{free_port('127.0.0.1')}/debian"
    monkeypatch.setenv("PJSUA2_SOURCE", "debian")
    monkeypatch.setenv("PJSUA2_APT_MIRROR", mirror)
    with pytest.raises(BuildError, match=f"reaching the mirror {mirror} failed"):
        source.fetch(tmp_path / "sources", progress)


def test_unknown_source_is_refused(
    tmp_path: Path, progress: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PJSUA2_SOURCE", "git")
    with pytest.raises(BuildError, match="'git'; it can be auto, archive or debian"):
        source.fetch(tmp_path / "sources", progress)


def test_other_distributions_are_told_what_to_do() -> None:
    assert debian.suite_for({"ID": "debian"}).name == "sid"
    assert debian.suite_for({"ID": "ubuntu"}).component == "universe"
    for release in ({"ID": "fedora", "PRETTY_NAME": "Fedora 42"}, {}):
        with pytest.raises(BuildError, match="PJSUA2_ARCHIVE and PJSUA2_ARCHIVE_SHA256"):
            debian.suite_for(release)
    with pytest.raises(BuildError, match="this system is Fedora 42"):
        debian.suite_for({"ID": "fedora", "PRETTY_NAME": "Fedora 42"})


def test_mirror_is_this_releases_own() -> None:
    lines = [
        "https://vendor.example/node|nodistro|main",
        "http://security.example/debian-security|bookworm-security|main",
        "http://mirror.example/debian/|bookworm|main",
        "http://other.example/debian/|bookworm|main",
    ]
    assert debian.mirror(lines, "bookworm") == "http://mirror.example/debian"
    assert debian.mirror(["http://m.example/d|sid|main"], "") == "http://m.example/d"
    with pytest.raises(BuildError, match="PJSUA2_APT_MIRROR"):
        debian.mirror(lines[:2], "bookworm")


def test_component_is_picked_from_apts_list() -> None:
    name = "asterisk_23.1.0+dfsg.orig-Xpjproject.tar.xz"
    lines = [
        "'http://m.example/a_23.1.0+dfsg.dsc' a_23.1.0+dfsg.dsc 1 SHA256:aa",
        "'http://m.example/orig.tar.xz' asterisk_23.1.0+dfsg.orig.tar.xz 5 SHA256:bb",
        f"'http://m.example/x.tar.xz' {name} 9 SHA256:cc",
    ]
    assert debian.newest(lines) == ("http://m.example/x.tar.xz", name, "cc")
    with pytest.raises(BuildError, match="no component Xpjproject"):
        debian.newest(lines[:2])


# --- the command


def run_build(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PJSUA2_")}
    clean.pop("PYTHON", None)
    return subprocess.run(
        [shutil.which("sh") or "/bin/sh", DEPLOY / "build.sh", *words],
        env={**clean, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def test_missing_interpreter_is_said(tmp_path: Path) -> None:
    done = run_build(tmp_path / "no-python")
    assert done.returncode == 2
    assert f"no Python interpreter at {tmp_path / 'no-python'}" in done.stderr


@linux_only
def test_missing_compiler_is_named_and_nothing_is_changed(tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "apt-get"):
        found = shutil.which(name)
        if found:
            (tools / name).symlink_to(found)
    done = run_build(
        *(sys.executable, "--no-install", "--no-packages"),
        PATH=str(tools),
        PJSUA2_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 1
    missing = done.stderr.splitlines()[0]
    assert missing.startswith("pjsua2: missing")
    assert {"gcc", "g++", "make", "swig"} <= set(missing.replace(".", " ").split())
    assert "the environment is as it was" in done.stderr
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["lock", "logs"]


@linux_only
def test_finished_wheel_is_taken_from_the_cache_without_any_tool(tmp_path: Path) -> None:
    root = tmp_path / "cache"
    kept = root / "wheels" / cache.wheel_key(DEPLOY, "2.17") / "pjsua2_gateway-2.17.whl"
    kept.parent.mkdir(parents=True)
    kept.touch()
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname"):
        (tools / name).symlink_to(shutil.which(name) or "")
    done = run_build(*(sys.executable, "--no-install"), PATH=str(tools), PJSUA2_CACHE=str(root))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(kept)
