# SPDX-License-Identifier: GPL-2.0-or-later
"""Compiles pjproject's C and C++ libraries: once for all interpreters of a machine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from pathlib import Path

from .progress import Progress

CONFIGURE = (
    "--enable-epoll",
    "--with-external-srtp",
    "--disable-sound",
    "--disable-video",
    "--disable-resample",
    "--disable-speex-aec",
    "--disable-l16-codec",
    "--disable-gsm-codec",
    "--disable-g7221-codec",
    "--disable-speex-codec",
    "--disable-ilbc-codec",
    "--disable-opencore-amr",
    "--disable-silk",
    "--disable-opus",
    "--disable-bcg729",
    "--disable-lyra",
    "--disable-libwebrtc",
    "--disable-libyuv",
    "--disable-sdl",
    "--disable-ffmpeg",
    "--disable-v4l2",
    "--disable-openh264",
    "--disable-vpx",
    "--disable-upnp",
)
CFLAGS = "-O2 -fPIC -DNDEBUG"
# All of pjproject that a call needs, in the order in which upstream builds it.
FOLDERS = (
    "pjlib/build",
    "pjlib-util/build",
    "pjnath/build",
    "third_party/build",
    "pjmedia/build",
    "pjsip/build",
)
# Debian strips a file whose licence it doubts; upstream's Makefile still names it. Its code is
# for a sound device, and empty without one.
STRIPPED = ("pjmedia/src/pjmedia-audiodev/bdimad_dev.c",)

_NEEDED_BY_OTHERS = (
    "pjlib/lib/libpj",
    "pjlib-util/lib/libpjlib-util",
    "pjnath/lib/libpjnath",
    "pjmedia/lib/libpjmedia",
)
INCLUDES = ("pjlib", "pjlib-util", "pjnath", "pjmedia", "pjsip")
# What a wheel says of itself, by the names that config_site.h gives them.
LIMITS = {
    "max_calls": "PJSUA_MAX_CALLS",
    "max_conference_ports": "PJSUA_MAX_CONF_PORTS",
    "max_accounts": "PJSUA_MAX_ACC",
    "max_sockets": "PJ_IOQUEUE_MAX_HANDLES",
    "max_transactions": "PJSIP_MAX_TSX_COUNT",
    "max_packet_bytes": "PJSIP_MAX_PKT_LEN",
}
_OBJECT = re.compile(r" -o output/\S+\.o ")
_KEEP = re.compile(
    r"/(include|lib)/|/swig/[^/]+$|/g722/[^/]+\.h$|^/(COPYING|version\.mak|build\.mak|build/)"
)


def sanitizing() -> bool:
    """Whether this build is for AddressSanitizer (``--sanitize``)."""
    return os.environ.get("PJSUA2_SANITIZE") == "1"


def extra_cflags() -> str:
    """What is added to the compiler's flags everywhere: of the person who builds (PJSUA2_CFLAGS),
    and where memory is to be watched a pool that asks malloc for each of its pieces."""
    pools = ("-DPJ_POOL_DEBUG=1",) if sanitizing() else ()
    return " ".join((os.environ.get("PJSUA2_CFLAGS", ""), *pools)).strip()


def sanitizer_flags(undefined: bool = False) -> tuple[str, ...]:
    """For all but the generated wrapper, of compiler and linker. A report has names of functions,
    and no lines: these would cost a fifth of the build's time.

    ``undefined`` adds UndefinedBehaviorSanitizer, for C++ of ours: pjproject itself reads words at
    odd addresses all over."""
    if not sanitizing():
        return ()
    checks = (
        ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
        if undefined
        else ("-fsanitize=address",)
    )
    return (*checks, "-fno-omit-frame-pointer", "-O1")


def compile_library(tree: Path, here: Path, jobs: int, progress: Progress) -> None:
    """Configures and compiles a source tree in place, with this folder's settings and patches.

    ``here`` is ``deploy/pjsua2``. Raises BuildError with the compiler's last lines.
    """
    for name in STRIPPED:
        (tree / name).touch()
    shutil.copyfile(here / "config_site.h", tree / "pjlib/include/pj/config_site.h")
    for patch in sorted((here / "patches").glob("*.patch")):
        progress.run(
            ["patch", "-p1", "--forward", "--batch", "-i", patch],
            cwd=tree,
            what=f"applying {patch.name}",
        )
    flags = " ".join((CFLAGS, extra_cflags(), *sanitizer_flags())).strip()
    env = {
        **os.environ,
        "CFLAGS": flags,
        "CXXFLAGS": flags,
        "LC_ALL": "C",
        "ASAN_OPTIONS": "detect_leaks=0",  # of configure's own programs
    }
    with progress.step("configure pjproject"):
        progress.run(["./aconfigure", *CONFIGURE], cwd=tree, env=env, what="configuring pjproject")
    with progress.step("compile the C libraries"):
        total = _objects(tree, env, progress)
        done = 0

        def count(line: str) -> None:
            nonlocal done
            if _OBJECT.search(line):
                done += 1
                progress.count(done, total, "files")

        for folder in FOLDERS:
            progress.run(
                ["make", f"-j{jobs}", "-C", folder, "lib"],
                cwd=tree,
                env=env,
                what=f"compiling {folder.partition('/')[0]}",
                on_line=count,
            )


def _objects(tree: Path, env: dict[str, str], progress: Progress) -> int:
    """How many files there are to compile, by asking make."""
    found = 0

    def count(line: str) -> None:
        nonlocal found
        found += bool(_OBJECT.search(line))

    # A dry run stops at a library that another folder has yet to make: stand-ins for these.
    target = re.search(r"TARGET_NAME := (\S+)", (tree / "build.mak").read_text(encoding="utf-8"))
    suffix = target[1] if target else ""
    stand_ins = [tree / f"{stem}-{suffix}.a" for stem in _NEEDED_BY_OTHERS]
    for path in stand_ins:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    for folder in FOLDERS:
        progress.run(
            ["make", "-n", "-C", folder, "lib"],
            cwd=tree,
            env=env,
            what=f"looking through {folder.partition('/')[0]}",
            on_line=count,
        )
    for path in stand_ins:
        path.unlink()
    return found


def link_words(tree: Path, progress: Progress) -> list[str]:
    """The words that link the libraries of a compiled tree, as upstream's Makefile lists them."""
    makefile = tree / "words.mak"
    makefile.write_text(
        "include build.mak\nwords:\n\t@echo WORDS: $(PJ_LDXXFLAGS) $(PJ_LDXXLIBS)\n",
        encoding="utf-8",
    )
    lines = progress.run(
        ["make", "--no-print-directory", "-f", "words.mak", "words", f"PJDIR={tree}"],
        cwd=tree,
        what="asking for the libraries",
    )
    for line in lines:
        if line.startswith("WORDS: "):
            return shlex.split(line.removeprefix("WORDS: "))
    return []


def limits(tree: Path, work: Path, progress: Progress) -> dict[str, int]:
    """The limits of LIMITS as compiled, by a program that includes the library's own headers."""
    program = work / "limits.cpp"
    prints = "".join(f'printf("%s=%ld\\n", "{key}", (long){name});' for key, name in LIMITS.items())
    program.write_text(
        f"#include <stdio.h>\n#include <pjsua-lib/pjsua.h>\nint main(void) {{ {prints} }}\n",
        encoding="utf-8",
    )
    include = [f"-I{tree / name / 'include'}" for name in INCLUDES]
    defines = [word for word in link_words(tree, progress) if word.startswith("-D")]
    progress.run(
        ["g++", *defines, *shlex.split(extra_cflags()), *include, program, "-o", work / "limits"],
        what="asking for the limits",
    )
    lines = progress.run([work / "limits"], what="asking for the limits")
    return {key: int(value) for key, _, value in (line.partition("=") for line in lines)}


def slim(tree: Path) -> None:
    """Removes all that linking an extension does not need: objects, apps, tests, docs."""
    for path in sorted(tree.rglob("*"), reverse=True):
        name = "/" + path.relative_to(tree).as_posix()
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif not _KEEP.search(name):
            path.unlink()
