#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Installs into the environment of PYTHON as pip does: pip-install.sh PYTHON OPTIONS OF pip install.
# By uv, which takes seconds where pip takes a minute; by pip where uv is not to be had, or where
# another index than PyPI is configured for pip, of which uv knows nothing.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
python=$1
shift
pip="$python -m pip --disable-pip-version-check"
if ! $pip config list 2>&1 | grep -q "[.]index-url="; then
    if ! "$python" -c 'import uv' 2>/dev/null; then
        $pip install --quiet --require-hashes -r "$here/uv.lock" || true
    fi
    if "$python" -m uv pip install --quiet --system-certs --python "$python" "$@"; then
        exit 0
    fi
    echo "Without uv: pip takes a minute or two" >&2
fi
exec $pip install --quiet "$@"
