#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# Installs the gateway of this folder as a service of systemd, on Debian or Ubuntu: docs/deployment.md.
#   deploy/install.sh           as root; that of a newer version upgrades
#   deploy/install.sh remove    leaves /etc/gateway and /var/lib/gateway, which are yours
set -eu
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
home=/opt/gateway
etc=/etc/gateway
units=/etc/systemd/system
case "${1-}" in
    "" | remove) ;;
    *) sed -n 3,5p "$0"; exit 2 ;;
esac
[ "$(id -u)" -eq 0 ] || { echo "This needs root." >&2; exit 1; }
systemd() { if [ -d /run/systemd/system ]; then systemctl "$@"; fi; }

if [ "${1-}" = remove ]; then
    systemd disable --quiet --now gateway.service || true
    rm -f "$units/gateway.service" /usr/local/bin/gateway
    rm -rf "$home" "$home"-[0-9]*
    systemd daemon-reload
    echo "Removed. Left are $etc, /var/lib/gateway and the user gateway."
    exit 0
fi
if [ -e "$home" ] && [ ! -L "$home" ]; then
    echo "$home was not made by this script: move it away first." >&2
    exit 1
fi

# Each version in a folder of its own: a gateway that runs, or drains, keeps the files it began with,
# and an upgrade that fails changes nothing.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/pyproject.toml")
release=$home-$version-$(date -u +%Y%m%dT%H%M%S)
before=$(readlink "$home" || true)
trap 'rm -rf "$release"' EXIT
# No command is called libsrtp2 or libopus: a wheel out of the cache does not bring the libraries it needs.
"$here/deploy/setup/need-debian.sh" adduser:adduser make:make libsrtp2:libsrtp2-1 libopus:libopus0
mkdir "$release"
tar -C "$here" --exclude=__pycache__ -c Makefile README.md LICENSE deploy dialplans docs gateway \
    gateway.toml pyproject.toml requirements.lock | tar -C "$release" --no-same-owner -x
make -C "$release" .venv/.pjsua2 .venv/.app
"$release/.venv/bin/python" -c "import pjsua2"
"$release/.venv/bin/python" -m compileall -q "$release/gateway" "$release/.venv/lib" || true

id gateway >/dev/null 2>&1 \
    || adduser --quiet --system --group --home /var/lib/gateway --no-create-home gateway
install -d -m 750 -g gateway "$etc"
install -d -m 750 -o gateway -g gateway /var/lib/gateway
if [ ! -e "$etc/gateway.toml" ]; then
    sed 's|^socket = "gateway.sock"|socket = "/run/gateway/gateway.sock"|
        s|^# \[records\]|[records]|; s|^# folder = "records" |folder = "/var/lib/gateway/records" |' \
        "$here/gateway.toml" >"$etc/gateway.toml"
    cp -r "$here/dialplans" "$etc/"
    chgrp -R gateway "$etc"
    chmod -R o= "$etc"
    (umask 077 && echo '# OPENAI_API_KEY=sk-...' >"$etc/environment")
fi
# The new version reads the files of the old one before it takes its place.
(
    set -a
    # shellcheck disable=SC1091
    [ ! -r "$etc/environment" ] || . "$etc/environment"
    "$release/.venv/bin/gateway" check -c "$etc/gateway.toml"
)
cp "$release/deploy/systemd/gateway.service" "$units/"
ln -sfn "$release" "$home"
ln -sf "$home/.venv/bin/gateway" /usr/local/bin/gateway
trap - EXIT
systemd daemon-reload
for old in "$home"-[0-9]*; do # the one before stays: ln -sfn goes back to it
    [ "$old" = "$release" ] || [ "$old" = "$before" ] || rm -rf "$old"
done
if [ -n "$before" ]; then
    systemd try-restart gateway.service # calls in progress end within limits.drain_timeout
    echo "Upgraded to $version. Back: ln -sfn $before $home && systemctl restart gateway"
else
    echo "Installed $version. Edit $etc/gateway.toml and $etc/environment, then:" \
        "systemctl enable --now gateway"
fi
