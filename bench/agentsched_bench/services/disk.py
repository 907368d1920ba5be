"""A disk of its own that can be slow, silent or full: ext4 in a file (Linux, root).

It is silent by what backups use to stand still for a moment, `FIFREEZE`: the kernel lets whoever
writes wait, and nobody can be killed while he does. So a process of its own has its hand on that,
and lets go when it hears nothing more from us, however we ended.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from agentsched.model import AgentschedError
from agentsched_bench.services.local import LocalService

#: Of <linux/fs.h>.
_FREEZE: Final = 0xC0045877
_THAW: Final = 0xC0045878
#: For how long a slow disk takes what has waited.
_TAKES_S: Final = 0.02
_RUN_S: Final = 60.0
_MOUNTS: Final = 1 << 21  # CAP_SYS_ADMIN
_BLOCK: Final = 1 << 16


def is_possible() -> bool:
    """Whether this process may mount disks."""
    has_tools = all(shutil.which(name, path=_path()) for name in ("mkfs.ext4", "mount", "umount"))
    return has_tools and Path("/dev/loop-control").exists() and bool(_capabilities() & _MOUNTS)


class LocalDisk(LocalService):
    """One disk of `mib` MiB, mounted at `folder`."""

    def __init__(self, *, mib: int = 64) -> None:
        if not is_possible():
            raise AgentschedError("a disk of its own takes Linux, root and loop devices")
        self._home = Path(tempfile.mkdtemp(prefix="agentsched-disk-"))
        self._home.chmod(0o755)  # servers that are not root's have files on it, too
        self.folder = self._home / "disk"
        self._image = self._home / "image"
        self._filler = self.folder / "filler"
        self._bytes = mib << 20
        self._hand: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Make it."""
        self.folder.mkdir()
        with self._image.open("wb") as image:
            image.truncate(self._bytes)
        # No part is kept for root, who fills it; small blocks, so that full is full.
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "1024", "-O", "^has_journal", self._image)

    def start(self) -> None:
        """Mount it."""
        _run("mount", "-o", "loop", self._image, self.folder)
        self._hand = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
        )

    def stop(self) -> None:
        """From now on nothing that is written is taken; what is there can be read."""
        self._say("stop")

    def slow(self, seconds: float) -> None:
        """From now on whatever is written waits for so long."""
        self._say(f"slow {seconds}")

    def go_on(self) -> None:
        """End `stop` and `slow`: what has waited is taken."""
        self._say("go on")

    def fill(self) -> None:
        """Leave no block."""
        block = bytes(_BLOCK)
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(block)
            except OSError:
                # Not before the blocks are really given to us is there none for others.
                os.fsync(file.fileno())

    def make_room(self) -> None:
        """End `fill`."""
        self._filler.unlink()

    def close(self) -> None:
        """Unmount and remove it; who had files there open loses them."""
        hand, self._hand = self._hand, None
        if hand is not None:
            hand.communicate(timeout=_RUN_S)
        if self.folder.is_mount():
            _run("umount", "--lazy", self.folder)
        shutil.rmtree(self._home, ignore_errors=True)

    def _say(self, word: str) -> None:
        assert self._hand is not None
        assert self._hand.stdin is not None
        assert self._hand.stdout is not None
        self._hand.stdin.write(word + "\n")
        self._hand.stdin.flush()
        said = self._hand.stdout.readline().strip()
        if said != "done":
            raise AgentschedError(f"the disk at {self.folder} does not {word}: {said}")


def _capabilities() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _run(program: str, *arguments: str | Path) -> None:
    command = [shutil.which(program, path=_path()) or program, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, timeout=_RUN_S)
    if done.returncode:
        raise AgentschedError(f"{program}: {done.stderr.decode().strip()}")


class _Hand:
    """Freezes a disk and lets it go, as it is told."""

    def __init__(self, folder: Path) -> None:
        # Anything else that is frozen here would be the machine itself.
        assert folder.is_mount()
        assert os.stat(folder).st_dev != os.stat("/").st_dev
        self._disk = os.open(folder, os.O_RDONLY)
        self._is_frozen = False
        #: How long it stays frozen while it is slow.
        self._slow_s: float | None = None

    def work(self) -> None:
        """Until nobody tells it anything more."""
        try:
            while (word := self._next()) is not None:
                match word.split():
                    case ["stop"]:
                        self._slow_s = None
                        self._freeze(True)
                    case ["slow", seconds]:
                        self._slow_s = float(seconds)
                        self._freeze(True)
                    case _:
                        self._slow_s = None
                        self._freeze(False)
                print("done", flush=True)
        finally:
            self._freeze(False)

    def _next(self) -> str | None:
        """What it is told next; a slow disk goes on being so meanwhile."""
        while not select.select([0], [], [], self._patience())[0]:
            self._freeze(not self._is_frozen)
        return os.read(0, 64).decode() or None

    def _patience(self) -> float | None:
        if self._slow_s is None:
            return None
        return self._slow_s if self._is_frozen else _TAKES_S

    def _freeze(self, wanted: bool) -> None:
        if wanted is not self._is_frozen:
            fcntl.ioctl(self._disk, _FREEZE if wanted else _THAW, 0)
            self._is_frozen = wanted


if __name__ == "__main__":
    _Hand(Path(sys.argv[1])).work()
