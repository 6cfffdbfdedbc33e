#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Prints the interpreter to make .venv with: $PYTHON if set, else one that the tests run on (3.11,
# 3.12), else any python3 that is new enough. Exit 1 with a message when there is none.
set -eu

new_enough() {
    # Run it: a name on the PATH may be a shim with nothing behind it.
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

if [ -n "${PYTHON-}" ]; then
    if new_enough "$PYTHON"; then
        echo "$PYTHON"
        exit 0
    fi
    echo "PYTHON=$PYTHON does not run, or is older than Python 3.11." >&2
    exit 1
fi
for name in python3.11 python3.12 python3 python3.13 python3.14 python; do
    if new_enough "$name"; then
        echo "$name"
        exit 0
    fi
done
echo "Python 3.11 or later is needed and was not found. On Debian 12 or Ubuntu 22.04 and later:" >&2
echo "    apt-get install python3.11 python3.11-venv      (or another version from 3.11 on)" >&2
echo "or name one: make PYTHON=/path/to/python3 ..." >&2
exit 1
