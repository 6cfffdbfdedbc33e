# SPDX-License-Identifier: GPL-2.0-or-later
"""``deploy/install.sh``: installs, upgrades, goes back, removes; in a mount namespace of its own.

``/etc`` is a copy there, and ``/opt``, ``/var/lib`` and ``/usr/local/bin`` are empty, so that this
machine keeps nothing of it. What takes minutes, building the virtual environment, is replaced.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
INSTALL = ROOT / "deploy" / "install.sh"

MAKE = f"""#!/bin/sh
# make -C RELEASE .venv/.pjsua2 .venv/.app
mkdir -p "$2/.venv/bin" && cd "$2/.venv/bin"
echo '#!/bin/sh' >python
echo 'case "$*" in *compileall*|*pjsua2*) ;; *) exec {sys.executable} "$@";; esac' >>python
printf '#!/bin/sh\\nPYTHONPATH=%s exec {sys.executable} -m gateway "$@"' "$2" >gateway
chmod 755 python gateway
"""

WORLD = """
set -eu
mount --bind "$WORK/etc" /etc
mkdir "$WORK/local"
mount --bind /usr/local/bin "$WORK/local"
for folder in /opt /var/lib /usr/local/bin; do mount -t tmpfs none "$folder"; done
ln -s "$WORK/local"/* /usr/local/bin/ # there may be the interpreter
rm -f /usr/local/bin/gateway
fails() { if "$@" >/dev/null 2>&1; then echo "should have failed: $*" >&2; exit 1; fi; }
releases() { ls -d /opt/gateway-* 2>/dev/null | wc -l; }

sh "$INSTALL" | grep "^Installed"
test "$(stat -c %U:%a /var/lib/gateway)" = gateway:750
test "$(stat -c %G:%a /etc/gateway)" = gateway:750
test "$(stat -c %a /etc/gateway/environment)" = 600
test -e /etc/systemd/system/gateway.service
gateway check -c /etc/gateway/gateway.toml | grep reception
grep '^folder = "/var/lib/gateway/records"' /etc/gateway/gateway.toml
first=$(readlink /opt/gateway)

echo "# mine" >>/etc/gateway/gateway.toml
sleep 1
sh "$INSTALL" | grep "^Upgraded"
second=$(readlink /opt/gateway)
test "$first" != "$second"
tail -n 1 /etc/gateway/gateway.toml | grep "^# mine"
test "$(releases)" = 2

# A mistake in the configuration: nothing changes.
echo "[nonsense]" >>/etc/gateway/gateway.toml
sleep 1
fails sh "$INSTALL"
test "$(readlink /opt/gateway)" = "$second"
test "$(releases)" = 2

fails sh "$INSTALL" uninstall
sh "$INSTALL" remove | grep "^Removed"
test ! -e /opt/gateway
test ! -e /usr/local/bin/gateway
test "$(releases)" = 0
test -e /etc/gateway/gateway.toml

# What somebody else has put there is theirs.
mkdir /opt/gateway
fails sh "$INSTALL"
test -d /opt/gateway
echo done
"""


def test_it_is_a_shell_script() -> None:
    """By the shell, and by ShellCheck where it is installed."""
    subprocess.run(["sh", "-n", INSTALL], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", INSTALL], check=True)


def _may_unshare() -> bool:
    done = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return os.geteuid() == 0 and done.returncode == 0 and shutil.which("adduser") is not None


@pytest.mark.skipif(not _may_unshare(), reason="needs root, mount namespaces and adduser")
def test_installed_upgraded_and_removed(tmp_path: Path) -> None:
    """A mistake in the configuration leaves the version that runs as it was."""
    shutil.copytree("/etc", tmp_path / "etc", symlinks=True, ignore_dangling_symlinks=True)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("make", MAKE), ("apt-get", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {
        "PATH": f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "WORK": str(tmp_path),
        "INSTALL": str(INSTALL),
        "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
    }
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", WORLD],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout.endswith("done\n"), (done.stdout[-2000:], done.stderr[-2000:])
    assert not Path("/opt/gateway").exists()
