"""A SLURM of one node with two imaginary GPUs, in a folder of its own.

It has its own munge, ports, state and spool. Only its configuration is linked to where SLURM looks
for it: the executor plugin takes SLURM_CONF out of the environment of a job's steps. A machine that
has a configuration there is left alone. SLURM only wants device files to exist, so two of
/dev/null's kind stand for the GPUs.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

PROGRAMS = (
    "munged",
    "slurmctld",
    "slurmd",
    "sbatch",
    "srun",
    "squeue",
    "scancel",
    "sinfo",
    "setpriv",
)
INSTALLED = [Path("/etc/slurm/slurm.conf"), Path("/etc/slurm/gres.conf")]
GPUS = 2
NULL = os.makedev(1, 3)

SLURM_CONF = """\
ClusterName=imaginary
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
GresTypes=gpu
ReturnToService=2
KillWait=5
SlurmdTimeout=10
SchedulerParameters=sched_interval=2,bf_interval=2
# More CPUs than the machine may have: the jobs are small, and two are to run side by side.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 RealMemory=200000 Gres=gpu:{gpus} State=UNKNOWN
PartitionName=imaginary Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing_programs() -> list[str]:
    """Names of SLURM's and munge's programs that are not installed."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Job(NamedTuple):
    """A job in the queue: what it asked for by --gpus stands per job, by --gres per node."""

    number: str
    state: str
    comment: str
    gpus: str
    gres: str


@dataclass
class Cluster:
    """A running SLURM.

    Attributes:
        folder: everything that belongs to it.
        daemons: munged, slurmctld and slurmd, by name.
    """

    folder: Path
    daemons: dict[str, subprocess.Popen] = field(default_factory=dict)

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands; give what it prints."""
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def jobs(self) -> list["Job"]:
        """The jobs in the queue."""
        columns = "JobID:|,State:|,Comment:|,tres-per-job:|,tres-per-node:|"
        lines = self.run("squeue", "--noheader", "-O", columns).splitlines()
        return [Job(*map(str.strip, line.split("|")[:5])) for line in lines]

    def running(self, rule: str) -> list["Job"]:
        """A rule's running jobs."""
        return [
            job for job in self.jobs() if job.state == "RUNNING" and f"rule_{rule}" in job.comment
        ]

    def start(self, name: str, *arguments: object) -> None:
        """Start a daemon, which ends with this process, however that ends."""
        self.daemons[name] = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", name, *map(str, arguments)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def start_node(self) -> None:
        """Start the node's daemon."""
        self.start("slurmd", "-D")

    def node_state(self) -> str:
        """The node's state, such as ``idle`` or ``mixed``."""
        return self.run("sinfo", "--noheader", "-o", "%T").strip()

    def power_cut(self) -> None:
        """End the node's daemon and everything that runs on it, with no warning."""
        steps = [pid for pid, _ in processes() if is_step_of(pid, self.folder)]
        self.daemons["slurmd"].kill()
        self.daemons["slurmd"].wait()
        for pid in [*steps, *descendants(steps)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def hurry(self) -> None:
        """Let the jobs of a failed node start at once: SLURM holds them back for two minutes."""
        for job in self.jobs():
            if job.state == "PENDING":
                self.run("scontrol", "update", f"JobId={job.number}", "StartTime=now")

    def end(self) -> None:
        """End the daemons and all that is left of the jobs."""
        if "slurmd" in self.daemons:
            self.power_cut()
        for daemon in self.daemons.values():
            daemon.kill()
            daemon.wait()


def processes() -> list[tuple[int, int]]:
    """All processes with their parents."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                parent = (folder / "stat").read_text().rpartition(")")[2].split()[1]
                found.append((int(folder.name), int(parent)))
    return found


def descendants(roots: list[int]) -> list[int]:
    """All processes below some."""
    children: dict[int, list[int]] = {}
    for pid, parent in processes():
        children.setdefault(parent, []).append(pid)
    found, waiting = [], list(roots)
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += below
    return found


def is_step_of(pid: int, folder: Path) -> bool:
    """Whether a process is a job's keeper (slurmstepd) of the SLURM in this folder."""
    try:
        proc = Path(f"/proc/{pid}")
        name = (proc / "comm").read_text().strip()
        opened = [os.readlink(link) for link in (proc / "fd").iterdir()]
    except OSError:
        return False
    return name == "slurmstepd" and any(path.startswith(str(folder)) for path in opened)


def wait_for(what: str, found: Callable[[], object], seconds: float = 60) -> object:
    """Wait until `found` gives something true, and give that."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := found():
            return value
        time.sleep(0.3)
    raise AssertionError(f"waited {seconds:.0f} s for {what}")


@contextlib.contextmanager
def slurm(folder: Path) -> Iterator[Cluster]:
    """Start munge, slurmctld and slurmd; end them, and all their jobs, at the end of the block."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    folder.chmod(0o755)  # munge wants nobody else to be able to write to its socket's folder
    configure(folder)
    cluster = Cluster(folder)
    for path in INSTALLED:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink() and not path.exists():
            path.unlink()  # of a test that could not clean up
        path.symlink_to(folder / path.name)
    try:
        cluster.start(
            *("munged", "--foreground", "--key-file", folder / "munge.key"),
            *("--socket", folder / "munge.socket", "--pid-file", folder / "munge.pid"),
            *("--log-file", folder / "munge.log", "--seed-file", folder / "munge.seed"),
        )
        wait_for("munge", (folder / "munge.socket").exists)
        cluster.start("slurmctld", "-D")
        cluster.start_node()
        wait_for("the node", lambda: _idle(cluster))
        yield cluster
    finally:
        cluster.end()
        for path in INSTALLED:
            path.unlink()


def configure(folder: Path) -> None:
    """Write the configuration, a key for munge, and the imaginary devices."""
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o400)
    controller_port, node_port = free_ports(2)
    (folder / "slurm.conf").write_text(
        SLURM_CONF.format(
            host=socket.gethostname().split(".")[0],
            folder=folder,
            gpus=GPUS,
            controller_port=controller_port,
            node_port=node_port,
        )
    )
    for number in range(GPUS):
        os.mknod(folder / f"gpu{number}", 0o20666, NULL)
    (folder / "gres.conf").write_text(f"Name=gpu File={folder}/gpu[0-{GPUS - 1}]\n")


def free_ports(count: int) -> list[int]:
    """Find ports that nobody listens on."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _idle(cluster: Cluster) -> bool:
    with contextlib.suppress(subprocess.CalledProcessError):
        return cluster.node_state() == "idle"
    return False
