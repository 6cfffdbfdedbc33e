# SPDX-License-Identifier: GPL-2.0-or-later
"""The Python side: SWIG's wrapper, our own native files, and the link into one extension module.

``native/`` holds what is ours:

- ``*.i`` with a first line ``// Read before pjsua2.i`` sets SWIG's features, every other ``*.i``
  is read after pjsua2's own and may use all its types; both in the order of their names;
- ``*.cpp`` are compiled and linked into the module, with all of pjproject's headers at hand.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .errors import BuildError
from .library import INCLUDES, extra_cflags, link_words, sanitizer_flags, sanitizing
from .progress import Progress

SWIG_FLAGS = ("-c++", "-python", "-threads", "-w312,325,389,401,451,473,503,509")
# The wrapper is one file of ten megabytes: its optimisation costs minutes of compiling and
# brings nothing that could be measured; -O0 doubles its size.
WRAPPER_FLAGS = ("-O1", "-g0", "-fPIC", "-DNDEBUG", "-w", "-fno-strict-aliasing")
NATIVE_FLAGS = ("-O2", "-g0", "-fPIC", "-DNDEBUG", "-Wall")
# Calls inside the module are bound when it is linked: no lookup by name, and no mix-up with
# another pjproject in the same process.
LINK_FLAGS = ("-shared", "-Wl,-Bsymbolic-functions", "-Wl,--as-needed")
# Of the codecs in native/. Debian's libopus.a is not made for shared objects.
LIBRARIES = ("-lopus", "-l:libspeexdsp.a")

# Lists that are wrapped, of those in pjsua2.i: each costs half a second of compiling.
VECTORS = frozenset(
    (
        *("StringVector", "IntVector", "ByteVector", "SockOptVector", "SipHeaderVector"),
        *("AuthCredInfoVector", "CallMediaInfoVector", "CodecInfoVector2", "SslCertNameVector"),
    )
)

_FIRST = "// Read before pjsua2.i"
_TEMPLATE = re.compile(r"^%template\((\w+)\).*", re.MULTILINE)


def _interface(native: Path) -> str:
    """The SWIG file that reads ours and pjsua2's in order."""
    files = sorted(native.glob("*.i"))
    before = [file for file in files if file.read_text(encoding="utf-8").startswith(_FIRST)]
    after = [file for file in files if file not in before]
    lines = ['%module(directors="1") pjsua2']
    lines += [f'%include "{file.name}"' for file in before]
    lines += ['%include "pjsua2_used.i"']
    lines += [f'%include "{file.name}"' for file in after]
    return "\n".join(lines) + "\n"


def _used(upstream: str) -> str:
    """pjsua2.i with the lists that are in VECTORS alone."""
    return _TEMPLATE.sub(lambda found: found[0] if found[1] in VECTORS else "", upstream)


def build_module(
    tree: Path, here: Path, work: Path, objects: Path, jobs: int, progress: Progress
) -> None:
    """Leaves ``pjsua2.py`` and the extension module in ``work``.

    ``tree`` is a compiled pjproject, ``here`` is ``deploy/pjsua2``, ``objects`` keeps the
    compiled wrapper between builds that do not change it, ``jobs`` files are compiled at once.
    Raises BuildError.
    """
    native = here / "native"
    include = [f"-I{tree / name / 'include'}" for name in INCLUDES]
    swig_folder = tree / "pjsip-apps/src/swig"
    with progress.step("generate the Python wrapper"):
        interface = work / "pjsua2_gateway.i"
        interface.write_text(_interface(native), encoding="utf-8")
        upstream = (swig_folder / "pjsua2.i").read_text(encoding="utf-8")
        (work / "pjsua2_used.i").write_text(_used(upstream), encoding="utf-8")
        wrapper = work / "pjsua2_wrap.cpp"
        progress.run(
            [
                *("swig", *SWIG_FLAGS, *include, f"-I{native}", f"-I{swig_folder}"),
                *("-outdir", work, "-o", wrapper, interface),
            ],
            cwd=work,
            what="generating the wrapper",
        )
    words = link_words(tree, progress)
    defines = [word for word in words if word.startswith("-D")]
    python = f"-I{sysconfig.get_path('include')}"
    common = [*defines, *include, f"-I{native}", python, *shlex.split(extra_cflags())]
    # Pools of a sanitized build have another size, so its wrapper is its own; it is for tests only.
    flags = [*WRAPPER_FLAGS, *common, *(("-O0",) if sanitizing() else ())]
    with progress.step("compile the Python wrapper"):

        def compile_native(source: Path) -> Path:
            target = work / f"{source.stem}.o"
            progress.run(
                [
                    *("g++", *NATIVE_FLAGS, *common, *sanitizer_flags(undefined=True)),
                    *("-c", source, "-o", target),
                ],
                what=f"compiling {source.name}",
            )
            return target

        with ThreadPoolExecutor(jobs) as pool:  # the wrapper takes longer than all others together
            first = pool.submit(_wrapper_object, wrapper, flags, work, objects, progress)
            others = pool.map(compile_native, sorted(native.glob("*.cpp")))
            compiled = [first.result(), *others]
        link = [word for word in words if word.startswith(("-L", "-l", "-p", "/")) or ".a" in word]
        module = work / f"_pjsua2{sysconfig.get_config_var('EXT_SUFFIX')}"
        strip = () if sanitizing() else ("-s",)
        progress.run(
            [
                *("g++", *LINK_FLAGS, *strip, *sanitizer_flags(undefined=True)),
                *(*compiled, *link, *LIBRARIES, "-o", module),
            ],
            what="linking",
        )


def _wrapper_object(
    wrapper: Path, flags: list[str], work: Path, objects: Path, progress: Progress
) -> Path:
    """Compiles the wrapper, or takes it from an earlier build of the very same file."""
    digest = hashlib.sha256(wrapper.read_bytes().replace(os.fsencode(work), b""))
    digest.update(repr(flags).encode())
    digest.update(compiler().encode())
    kept = objects / f"{digest.hexdigest()[:24]}.o"
    if not kept.is_file():
        objects.mkdir(parents=True, exist_ok=True)
        target = work / "pjsua2_wrap.o"
        progress.run(
            ["g++", *flags, "-c", wrapper, "-o", target], what="compiling the Python wrapper"
        )
        part = kept.with_suffix(f".{os.getpid()}.part")
        shutil.copyfile(target, part)
        part.rename(kept)
    return kept


def compiler() -> str:
    """The compiler's own first line of ``--version``. Raises BuildError when there is none."""
    try:
        shown = subprocess.run(
            ["g++", "--version"], capture_output=True, text=True, check=True, timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"cannot run g++: {error}") from error
    return shown.stdout.splitlines()[0]


def asan_runtime() -> str:
    """The library that a program has to load first (LD_PRELOAD) where a module is sanitized."""
    shown = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return shown.stdout.strip()
