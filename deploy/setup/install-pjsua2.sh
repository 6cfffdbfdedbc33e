#!/bin/sh
# Gives the environment of INTERPRETER a pjsua2: install-pjsua2.sh INTERPRETER
# One built from source that is already there stays. Else the hash-pinned wheel, which exists for
# CPython 3.11 and 3.12 on x86_64; for others it is built from source, which takes some minutes.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$1

if "$python" -c 'import pjsua2' >/dev/null 2>&1 &&
    ! "$python" -m pip --disable-pip-version-check show pjsua2-python >/dev/null 2>&1; then
    exit 0
fi
if "$python" - <<'END'
import platform, sys
wheel = sys.version_info[:2] in ((3, 11), (3, 12)) and sys.implementation.name == "cpython"
sys.exit(not (wheel and platform.machine() == "x86_64" and platform.libc_ver()[0] == "glibc"))
END
then
    "$python" -m pip --disable-pip-version-check install --quiet --require-hashes --no-deps \
        -r "$here/../pjsua2/wheel.txt"
else
    echo "No pjsua2 wheel for this Python or processor: building it from source (some minutes)."
    sh "$here/../pjsua2/build.sh" "$python"
fi
"$python" -c 'import pjsua2'
