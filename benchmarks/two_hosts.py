"""Two hosts in network namespaces of this machine, with a link between them that has a rate; needs root, iproute2 and MPICH."""

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

NAMES = (f"fflm-first-{os.getpid()}", f"fflm-second-{os.getpid()}")
"""The namespaces; those of two programs that run at the same time have different names."""

DEVICE = "fflm0"
ADDRESSES = ("10.77.0.1", "10.77.0.2")

LAUNCHER = """#!/bin/sh
# MPICH's mpiexec calls this in place of ssh: options, a host, and a command.
while [ "${1#-}" != "$1" ]; do shift; done
case "$1" in %s) name=%s;; *) name=%s;; esac
shift
exec ip netns exec $name sh -c "$*"
"""


def why_no_hosts() -> str:
    """Return the reason why `two_hosts` cannot be used, or an empty string."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "network namespaces need root"
    if not (shutil.which("ip") and shutil.which("tc")):
        return "the commands ip and tc are missing: install iproute2"
    if subprocess.run(["unshare", "--net", "true"], capture_output=True, check=False).returncode:
        return "this system allows no network namespaces"
    return ""


@contextlib.contextmanager
def two_hosts(rate: float | None, mpiexec: Path) -> Iterator[list[str]]:
    """Yield the command, to which arguments are to be added, that starts MPI processes on both hosts in turns.

    Parameters
    ----------
    rate
        The rate of the link in both directions, in bits per second; None for the speed of memory.
    mpiexec
        MPICH's launcher.
    """
    with contextlib.ExitStack() as stack:
        for name in NAMES:
            _run("ip", "netns", "add", name)
            stack.callback(_run, "ip", "netns", "del", name)
        _run("ip", "link", "add", DEVICE, "netns", NAMES[0], "type", "veth", "peer", "name", DEVICE, "netns", NAMES[1])
        for name, address in zip(NAMES, ADDRESSES, strict=True):
            _run("ip", "-n", name, "addr", "add", f"{address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                _run("ip", "-n", name, "link", "set", device, "up")
            if rate:
                bucket = f"tbf rate {rate:.0f}bit burst 64kb latency 50ms".split()  # a bucket of tokens for bytes, and a queue
                _run("tc", "-n", name, "qdisc", "add", "dev", DEVICE, "root", *bucket)
        for name in NAMES:
            _wait_until_up(name)
        launcher = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "launcher"
        launcher.write_text(LAUNCHER % (ADDRESSES[0], *NAMES))
        launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
        inside = ["ip", "netns", "exec", NAMES[0], str(mpiexec), "-launcher", "ssh", "-launcher-exec", str(launcher)]
        # UCX, with which MPICH communicates, would find out that the hosts have one memory.
        yield ["env", "UCX_TLS=tcp,self", *inside, "-localhost", ADDRESSES[0], "-hosts", ",".join(ADDRESSES)]


def _wait_until_up(name: str, seconds: float = 10.0) -> None:
    """Wait until the link of a namespace works, which takes a moment after it was set up; UCX uses no other."""
    end = time.monotonic() + seconds
    while subprocess.check_output(["ip", "-n", name, "-brief", "link", "show", DEVICE], text=True).split()[1] != "UP":
        if time.monotonic() > end:
            raise TimeoutError(f"the link of {name} does not work")
        time.sleep(0.05)


def _run(*command: str) -> None:
    subprocess.run(command, check=True)
