"""A systemd of a test's own, as process 1 of namespaces of its own, that knows one unit."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from tests.support.server import TIMEOUT

SYSTEMD = Path("/lib/systemd/systemd")
_TARGETS = ("basic.target", "network-online.target", "shutdown.target", "sysinit.target")
# Makes a root with this machine's programs, moves there, and leaves the machine's own root behind. A service with
# users of its own (`PrivateUsers`) needs that: in a `chroot` the kernel refuses them.
_BOOT = """
cd "$1"
mount --bind . .
cd "$1"
for name in usr bin lib lib64 sbin; do
    if [ -L /$name ]; then cp -d /$name $name; elif [ -d /$name ]; then mkdir $name; mount --bind /$name $name; fi
done
mkdir -p dev old proc run sys tmp var/lib venv
mount --bind "$3" venv
mount -t tmpfs none dev
for name in null zero full random urandom tty; do touch dev/$name; mount --bind /dev/$name dev/$name; done
mkdir dev/hugepages dev/mqueue dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 none dev/pts
ln -s pts/ptmx dev/ptmx
mount -t tmpfs none run
mount -t sysfs -o ro none sys
mount -t cgroup2 none sys/fs/cgroup
pivot_root . old
exec chroot . sh -ec '
    mount -t proc none /proc
    umount -l /old
    exec unshare --fork --kill-child --pid --cgroup --ipc --uts --mount-proc env -i container=test \\
        SYSTEMD_UNIT_PATH=/etc/systemd/system /lib/systemd/systemd --unit="$1" --log-target=console' sh "$2"
"""


class Systemd:
    """Runs `unit`, whose program stands at `program` and finds the virtual environment `venv` at /venv. `etc` are the
    contents of further files below /etc."""

    def __init__(self, folder: Path, unit: Path, program: str, venv: Path, etc: Mapping[str, str]) -> None:
        root = folder / "root"
        units = root / "etc" / "systemd" / "system"
        units.mkdir(parents=True)
        shutil.copy(unit, units)
        for target in _TARGETS:
            (units / target).write_text("[Unit]\nDefaultDependencies=no\n")
        for name in ("passwd", "group", "ld.so.cache", "hosts"):
            shutil.copy(f"/etc/{name}", root / "etc")
        (root / "etc" / "machine-id").write_text("1".zfill(32) + "\n")
        for name, text in etc.items():
            (root / "etc" / name).parent.mkdir(exist_ok=True)
            (root / "etc" / name).write_text(text)
            (root / "etc" / name).chmod(0o600)
        installed = root / Path(program).parent.parent.relative_to("/")
        installed.parent.mkdir(parents=True)
        installed.symlink_to("/venv")
        self.root, self.unit = root, unit.name
        self._log = (folder / "systemd.log").open("ab")
        command = ["unshare", "--mount", "sh", "-ec", _BOOT, "sh", str(root), unit.name, str(venv)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)

    def control(self, *command: str) -> str:
        """What systemctl says to a command about the unit. AssertionError where it fails."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        enter = ["nsenter", f"--target={children[0]}", "--mount", "--pid", "--ipc", "--uts", "--cgroup"]
        done = subprocess.run(
            [*enter, "systemctl", *command, self.unit], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def show(self, name: str) -> str:
        """A property of the unit."""
        return self.control("show", "--value", f"--property={name}").strip()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait(TIMEOUT)
        self._log.close()
