# SPDX-License-Identifier: GPL-2.0-or-later
"""The steps of a build, and what the command line may ask for."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
import zipfile
from pathlib import Path

from . import requirements, source
from .cache import cache_root, finished_wheel, library_key, locked, platform_key, prune, wheel_key
from .environment import has, install_wheel, require_pip
from .errors import BuildError
from .library import compile_library, extra_cflags, limits, sanitizing, slim
from .progress import Progress
from .wheel import wheel_name, write_wheel
from .wrapper import asan_runtime, build_module, compiler

HERE = Path(__file__).resolve().parent.parent
_STEPS = 8
# Of the make that calls this, or of another project's build: none of them is meant for this one.
_FOREIGN = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "CFLAGS", "CXXFLAGS", "CPPFLAGS", "LDFLAGS")


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 not possible (said why, nothing changed), 130 interrupted."""
    options = _parser().parse_args(arguments)
    for name in _FOREIGN:
        os.environ.pop(name, None)
    try:
        if sys.platform != "linux":
            raise BuildError(f"the build is for Linux, this is {sys.platform}")
        if options.sanitize:
            os.environ["PJSUA2_SANITIZE"] = "1"
            options.no_install = True
        root = cache_root(os.environ, HERE.parent.parent)
        if options.key:
            print(wheel_key(HERE, "*"))
            return 0
        with locked(root):
            _execute(options, root)
    except BuildError as error:
        print(f"pjsua2: {error}\npjsua2: the environment is as it was.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\npjsua2: interrupted; the environment is as it was.", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build.sh", description=__doc__)
    add = parser.add_argument
    add("--no-install", action="store_true", help="build into the cache only, print the path")
    add(
        "--no-packages", action="store_true", help="never run apt-get install, name what is missing"
    )
    add("--rebuild", action="store_true", help="build again even if the cache has the wheel")
    add(
        "--sanitize",
        action="store_true",
        help="for AddressSanitizer, into the cache only: README.md says how to run with it",
    )
    add("--key", action="store_true", help="print what the cached wheel is keyed by, and stop")
    add("--jobs", type=int, default=os.cpu_count() or 1, help="compile so many files at once")
    return parser


def _execute(options: argparse.Namespace, root: Path) -> None:
    logs = root / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    progress = Progress(_STEPS, log)
    if not options.no_install:
        require_pip()
    wheel = None if options.rebuild else finished_wheel(root, HERE)
    if wheel is None:
        wheel = _build(root, progress, options)
        prune(root)
    else:
        print(f"pjsua2: from the cache: {wheel}")
    if options.no_install:
        print(wheel)
        return
    if has(wheel) and not options.rebuild:
        print(f"pjsua2: {wheel.name} is installed in {sys.prefix} already")
        return
    install_wheel(wheel, progress)
    print(f"pjsua2: installed {wheel.name} into {sys.prefix}")


def _build(root: Path, progress: Progress, options: argparse.Namespace) -> Path:
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    print(
        f"pjsua2: building it from source for Python {version} ({sys.executable}): once, one to "
        f"two minutes on two cores; log: {progress.log}"
    )
    key = wheel_key(HERE, "*")
    with progress.step("look for what the build needs"):
        requirements.ensure(progress, may_install=not options.no_packages)
    with progress.step("get pjproject's source"):
        found = source.fetch(root / "sources", progress)
        progress.note(f"{found.origin}, SHA-256 {found.sha256}")
    (root / "work").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=root / "work") as name:
        work = Path(name)
        pj_version, tree = _library(root, found, work, progress, options, key)
        build_module(tree, HERE, work, root / "objects", options.jobs, progress)
        with progress.step("write and try the wheel"):
            return _wheel(root, tree, work, pj_version, found, progress, key)


def _require_unchanged(key: str) -> None:
    """Raise BuildError if the files are others than those that ``key`` stands for."""
    if wheel_key(HERE, "*") != key:
        raise BuildError(f"files below {HERE} changed while they were built: start it again")


def _library(
    root: Path,
    found: source.Source,
    work: Path,
    progress: Progress,
    options: argparse.Namespace,
    key: str,
) -> tuple[str, Path]:
    """The compiled libraries' version and folder, from the cache if they are there."""
    with progress.step("unpack"):
        version = source.unpack(found, work / "pjproject", progress)
    tree = root / "lib" / library_key(HERE, version, found.sha256)
    if tree.is_dir():
        progress.skip(2)
        progress.note(f"the C libraries of pjproject {version} are in the cache")
        return version, tree
    compile_library(work / "pjproject", HERE, options.jobs, progress)
    slim(work / "pjproject")
    _require_unchanged(key)
    tree.parent.mkdir(exist_ok=True)
    (work / "pjproject").rename(tree)
    return version, tree


def _wheel(
    root: Path,
    tree: Path,
    work: Path,
    version: str,
    found: source.Source,
    progress: Progress,
    key: str,
) -> Path:
    module = next(work.glob("_pjsua2*.so"))
    build = {
        "version": version,
        "distribution": "pjsua2-gateway",
        "source": found.origin,
        "source_sha256": found.sha256,
        **limits(tree, work, progress),
        "compiler": compiler(),
        "cflags": extra_cflags(),
        "platform": platform_key(),
        "native": sorted(path.name for path in (HERE / "native").glob("*.cpp")),
    }
    files = {f"pjsua2/{path.name}": path.read_bytes() for path in (HERE / "package").glob("*.py")}
    files["pjsua2/_build.py"] = (
        f'"""Written by the build."""\n\nBUILD = {json.dumps(build, indent=4)}\n'.encode()
    )
    files["pjsua2/pjsua2.py"] = (work / "pjsua2.py").read_bytes()
    files[f"pjsua2/{module.name}"] = module.read_bytes()
    made = work / wheel_name(version)
    write_wheel(made, version, files, (tree / "COPYING").read_bytes())
    try_wheel(made, work, progress)
    _require_unchanged(key)
    target = root / "wheels" / wheel_key(HERE, version) / made.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(made, target.with_suffix(".part"))
    target.with_suffix(".part").rename(target)
    return target


def try_wheel(wheel: Path, work: Path, progress: Progress) -> None:
    """Unpacks a wheel beside the environment and runs the smoke test on it in a new process."""
    place = work / "try"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    env = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    if sanitizing():
        env |= {"LD_PRELOAD": asan_runtime(), "ASAN_OPTIONS": "detect_leaks=0"}
    lines = progress.run(
        [sys.executable, "-B", HERE / "smoke.py"], env=env, what="trying the wheel"
    )
    for line in lines:
        if line.startswith("pjsua2:"):
            progress.note(line.removeprefix("pjsua2:").strip())
