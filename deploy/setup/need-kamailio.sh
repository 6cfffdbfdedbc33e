#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Installs Debian's Kamailio for the tests where it is missing, without starting the service that
# the package brings: it would take the SIP port of this machine, now and at every boot.
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
PATH=$PATH:/usr/sbin:/sbin
command -v kamailio >/dev/null 2>&1 && exit 0

as_root=
[ "$(id -u)" -eq 0 ] || as_root="sudo -n"
policy=/usr/sbin/policy-rc.d
ours=
# invoke-rc.d asks this file; 101 forbids the start (Debian's policy, section 9.3.3.2).
if [ ! -e "$policy" ] && printf '#!/bin/sh\nexit 101\n' | $as_root tee "$policy" >/dev/null 2>&1; then
    ours=yes
    trap '$as_root rm -f "$policy"' EXIT
    $as_root chmod 755 "$policy"
fi
"$here/need-debian.sh" kamailio:kamailio
if [ -n "$ours" ] && [ -d /run/systemd/system ]; then
    $as_root systemctl disable --quiet kamailio || true
fi
