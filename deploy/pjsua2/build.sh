#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Builds pjsua2 for many calls and installs it into an environment: deploy/pjsua2/README.md.
#   deploy/pjsua2/build.sh [INTERPRETER] [options]     (or PYTHON=INTERPRETER; default .venv/bin/python)
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=${PYTHON:-$here/../../.venv/bin/python}
case "${1-}" in
    '' | -*) ;;
    *) python=$1; shift ;;
esac
if ! command -v "$python" >/dev/null 2>&1; then
    echo "pjsua2: no Python interpreter at $python: make the environment first (make), or name one:" \
        "PYTHON=/path/to/venv/bin/python $0" >&2
    exit 2
fi
exec "$python" -B "$here/build.py" "$@"
