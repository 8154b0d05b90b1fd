#!/usr/bin/env python3
"""Disturbs jobs of three nodes at random for hours, and checks that none loses a step or its weights, and that nothing is left behind.

    scripts/soak.py [HOURS [SEED]] [--kind fixed,elastic,led] [--only cut,worker_killed]      as root, with ip and tc

The nodes are network namespaces on a bridge with a shared work folder. On each, an outer loop starts its launcher again with
--auto-resume until the job is done, as a cluster would. The first job is a scene with a script: node 2 is lost and comes back, a
spare replaces node 1, and the others go on without node 0. The next ones take turns, with faults at random:

    fixed      --nnodes 3: the weights must be those of an undisturbed job, bit for bit
    elastic    --nnodes 2:3
    led        the same, with node 0 left in peace so that its launcher lives long

Every second job has a work folder whose locks are those of a node, as on some parallel file systems: then only the fence of the
checkpoints keeps a node 0 that was cut off from overwriting what the others write. Memory and open files of each process are
watched all the time.

SEED gives the same faults at the same moments again; what they hit still depends on the clock. A violation prints the seed and the
folder with all logs, and ends with 1.
"""

import argparse
import collections
import glob
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAUNCH = os.path.join(ROOT, "target/release/fnet-launch")
CONFIG = os.path.join(ROOT, "configs/demo.toml")
NODES = 3
PORT = "29500"
# Environment variable that marks all processes of a soak.
MARK = "FNET_SOAK"
# A detector of a few thousand weights.
SETTINGS = """model.backbone.embed_dim=8 model.backbone.depths=[1,1,1,1] model.neck.out_channels=16 model.rpn.feat_channels=16
    model.rpn.train_nms_pre=100 model.rpn.max_per_image=50 model.roi_head.bbox_fc_channels=32 model.roi_head.mask_channels=16
    model.roi_head.mask_convs=1 data.samples_per_gpu=1 data.pipeline.scales=[[96,64]] data.pipeline.test_scale=[96,64]
    train.elastic_batch="as-is" log.interval=1 log.tensorboard=false checkpoint.keep_last=3""".split()
INTERVAL = 'checkpoint.interval="20 steps"'
TIMES = """--node-timeout 8 --join-timeout 15 --silence-timeout 8 --step-timeout 30 --eval-timeout 30 --save-timeout 20
    --start-timeout 60 --grace 10 --elastic-settle 2 --max-restarts 1000 --refill-after 5""".split()
# What a launcher may end with: done, a lost or hung worker, the machine, stopped; or 2 because a cut-off node 0 has the folder still.
CODES = {0, 4, 5, 6, 75, 130}
BUSY = "another job trains into"
# Longer than any recovery, in seconds.
RECOVERY_TIMEOUT = 180
# When a process has started for sure, in seconds, and what it may grow by from then on.
STARTED = 40
MAX_GROWTH = {"MiB": 48, "files": 12}
STRANGER = """import os, random, socket, sys, time
held = []
for number in range(60):
    try:
        held.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), 1))
        if number % 2: held[-1].send(os.urandom(random.randrange(1, 5000)))
    except OSError: pass
time.sleep(float(sys.argv[3]))"""


class Violation(Exception):
    pass


def ip(*words, check=True):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise SystemExit(f"error: ip {' '.join(words)}: {done.stderr.strip()} (root and iproute2 are needed)")


class Network:
    """Namespaces with an interface `net` to a bridge; node N is 10.77.0.(N + 1)."""

    def __init__(self):
        self.switch, *self.names = [f"fnet-soak-{os.getpid()}-{name}" for name in ("switch", *range(NODES))]

    def __enter__(self):
        for name in (self.switch, *self.names):
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", self.switch, "link", "add", "switch", "type", "bridge")
        ip("-n", self.switch, "link", "set", "switch", "up")
        for node, name in enumerate(self.names):
            ip("-n", name, "link", "add", "net", "type", "veth", "peer", "name", f"port{node}", "netns", self.switch)
            ip("-n", self.switch, "link", "set", f"port{node}", "master", "switch", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{node + 1}/24", "dev", "net")
            ip("-n", name, "link", "set", "net", "up")
        return self

    def __exit__(self, *_):
        for name in (self.switch, *self.names):
            ip("netns", "del", name, check=False)

    def shape(self, node, *discipline):
        """Limits what a node sends; without a discipline the limit goes."""
        words = ["add", "dev", "net", "root", *discipline] if discipline else ["del", "dev", "net", "root"]
        return subprocess.run(["ip", "netns", "exec", self.names[node], "tc", "qdisc", *words], capture_output=True).returncode == 0


class Node:
    """The outer loop of a node."""

    def __init__(self, number):
        self.number, self.process, self.starts, self.start_at = number, None, 0, 0
        # What the next start gets: a signal and when; a folder that is read-only.
        self.early, self.read_only, self.may_die_by = None, False, set()


class Fault:
    def __init__(self, name, node):
        self.name, self.node, self.at, self.recovered = name, node, time.monotonic(), None
        # The nodes whose completed steps it takes along.
        self.hits = set()


class Job:
    """One job under disturbance."""

    def __init__(self, soak, kind, name, own_locks=False):
        self.soak, self.kind, self.own_locks = soak, kind, own_locks
        self.folder, self.logs = os.path.join(soak.folder, name), os.path.join(soak.folder, f"{name}_logs")
        os.makedirs(self.folder)
        os.makedirs(self.logs)
        # A disk of its own, which a fault fills.
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", self.folder], check=True)
        self.nodes = [Node(number) for number in range(NODES)]
        self.master, self.done = 0, False
        self.faults, self.undo, self.extras, self.codes = [], [], [], collections.Counter()
        # The log: bytes read of each file, the last row and when it came; workers, and images and changes of the epoch.
        self.read, self.row, self.row_at = {}, (1, 0), time.monotonic()
        self.workers, self.seen, self.changes = NODES, 0, 0
        self.steps, self.unavoidable = 0, 0
        self.lines = open(os.path.join(self.logs, "faults.txt"), "w")

    def command(self, number, rank, read_only=False):
        nnodes = str(NODES) if self.kind == "fixed" else f"{NODES - 1}:{NODES}"
        words, mounts = ["ip", "netns", "exec", self.soak.network.names[number]], []
        if self.own_locks:
            lock, own = f"{self.folder}/.fnet.lock", f"{self.logs}/lock_{number}"
            mounts.append(f"touch {lock} {own}; mount --bind {own} {lock}")
        if read_only:
            mounts.append(f"mount --bind {self.folder} {self.folder}; mount -o remount,bind,ro {self.folder}")
        if mounts:
            words += ["sh", "-ec", "; ".join([*mounts, 'exec "$@"']), "sh"]
        words += [LAUNCH, "--device", "cpu", "--nproc", "1", "--nnodes", nnodes, "--node-rank", str(rank)]
        words += ["--master-addr", f"10.77.0.{self.master + 1}", "--master-port", PORT, *TIMES, *self.soak.train]
        return [*words, "--auto-resume", "--work-dir", self.folder, "--set", *self.soak.settings, INTERVAL]

    def spawn(self, name, words, **environment):
        with open(os.path.join(self.logs, f"{name}.txt"), "w") as told:
            environment = {**self.soak.environment, **environment}
            return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=told, stderr=told, env=environment)

    def start(self, node):
        rank, node.starts = (node.number - self.master) % NODES, node.starts + 1
        node.process = self.spawn(f"node_{node.number}_{node.starts}", self.command(node.number, rank, node.read_only))
        self.note(f"node {node.number} starts as rank {rank}, process {node.process.pid}")
        node.may_die_by = set()
        if node.early:
            number, delay = node.early
            node.may_die_by = {-number}
            self.signal_later(node.process, number, delay)
        node.early, node.read_only = None, False

    def check_code(self, name, code, may_die_by=frozenset()):
        self.note(f"{name} ended with {code}")
        self.codes[code] += 1
        with open(os.path.join(self.logs, f"{name}.txt"), errors="replace") as file:
            told = file.read()
        is_known = code in CODES | {-signal.SIGKILL} | may_die_by or code == 2 and BUSY in told
        if not is_known or "panicked" in told:
            raise Violation(f"{name} ended with code {code}")

    def signal(self, node, number):
        process = self.nodes[node].process
        if process and process.poll() is None:
            process.send_signal(number)

    def signal_workers(self, node, number):
        launcher = self.nodes[node].process
        for pid, parent, name in self.soak.processes():
            if launcher and parent == launcher.pid and name == "fnet-worker":
                os.kill(pid, number)

    def signal_later(self, process, number, seconds):
        self.later(seconds, lambda: process and process.poll() is None and process.send_signal(number))

    def later(self, seconds, action):
        self.undo.append((time.monotonic() + seconds, action))

    def note(self, line):
        print(f"{time.strftime('%H:%M:%S')}.{int(time.time() * 1000) % 1000:03} row {self.row} {line}", file=self.lines, flush=True)

    def read_log(self):
        for path in sorted(glob.glob(os.path.join(self.folder, "*.log.json"))):
            with open(path, "rb") as file:
                file.seek(self.read.get(path, 0))
                *lines, _ = file.read().split(b"\n")
            self.read[path] = self.read.get(path, 0) + sum(len(line) + 1 for line in lines)
            for line in map(json.loads, lines):
                if line.get("mode") == "elastic":
                    self.workers, self.changes = line["workers"], self.changes + 1
                elif line.get("mode") == "train":
                    self.on_row((line["epoch"], line["iter"]))

    def on_row(self, row):
        """Each step has one row. Only steps that no node has any more are trained again."""
        (epoch, step), since = self.row, [fault for fault in self.faults if fault.at >= self.row_at - 1]
        # A full disk takes no rows.
        may_lack = any(fault.name == "disk_full" for fault in since)
        if row <= self.row:
            self.note(f"back from {self.row} to {row}")
            if len(set().union(*(fault.hits for fault in since))) < NODES:
                raise Violation(f"steps {row} to {self.row} are trained again after {[(fault.name, fault.node) for fault in since]}")
            self.unavoidable, self.seen = self.unavoidable + 1, None
        elif row == (epoch + 1, 1):
            # Each change and the end fill up two groups of images to the number of workers.
            least = self.soak.images
            if not may_lack and self.seen is not None and not least <= self.seen <= least + (1 + self.changes) * 2 * (NODES - 1):
                raise Violation(f"epoch {epoch} had {self.seen} images of {least} in {self.changes} attempts")
            self.seen, self.changes = 0, 0
        elif row != (epoch, step + 1):
            if not may_lack:
                raise Violation(f"the log lacks rows between {self.row} and {row}")
            self.seen = None
        self.row, self.row_at, self.steps = row, time.monotonic(), self.steps + 1
        self.seen = None if self.seen is None else self.seen + self.workers
        for fault in self.faults:
            # A row may have been on its way.
            if not fault.recovered and self.row_at - fault.at > 0.2:
                fault.recovered = self.row_at - fault.at

    def run(self, scene):
        wait = next(scene)
        while not self.done:
            self.tick()
            if wait and wait():
                wait = next(scene, None)
        # All that is left ends by itself.
        for _, action in self.undo:
            action()
        self.undo, deadline = [], time.monotonic() + RECOVERY_TIMEOUT
        while self.soak.processes() or self.extras or any(node.process for node in self.nodes):
            self.tick()
            if time.monotonic() > deadline:
                raise Violation(f"left behind: {self.soak.processes()}")
        left = [name for name in os.listdir(self.folder) if name.endswith(".tmp")]
        if left:
            raise Violation(f"left behind in {self.folder}: {left}")
        if self.row[0] != self.soak.epochs:
            raise Violation(f"the job is done, but the last row is {self.row}")
        wrong = differences(self.folder, self.soak.whole) if self.kind == "fixed" else []
        if wrong:
            raise Violation(f"{len(wrong)} tensors are not those of the undisturbed job, such as {wrong[0]}")

    def tick(self):
        now = time.monotonic()
        due, self.undo = [at for at in self.undo if at[0] <= now], [at for at in self.undo if at[0] > now]
        for _, action in due:
            action()
        for node in self.nodes:
            code = node.process.poll() if node.process else None
            if code is not None:
                node.process, node.start_at = None, now + self.soak.luck.uniform(0, 2)
                self.check_code(f"node_{node.number}_{node.starts}", code, node.may_die_by)
                self.done |= code == 0
            elif not node.process and not self.done and node.start_at <= now:
                self.start(node)
        for name, process, codes in [extra for extra in self.extras if extra[1].poll() is not None]:
            self.extras.remove((name, process, codes))
            if codes is None:
                self.check_code(name, process.returncode)
            elif process.returncode not in codes:
                raise Violation(f"{name} ended with code {process.returncode}")
        self.read_log()
        if now - max([self.row_at, *(at for at, _ in self.undo)]) > RECOVERY_TIMEOUT:
            raise Violation(f"no step for {RECOVERY_TIMEOUT} s")
        self.soak.tick(self)
        time.sleep(0.05)

    def close(self):
        for process in [node.process for node in self.nodes] + [process for _, process, _ in self.extras]:
            if process and process.poll() is None:
                process.kill()
                process.wait()
        # What is mounted is gone afterwards.
        subprocess.run(["cp", "-r", self.folder, f"{self.folder}_kept"], stderr=subprocess.DEVNULL)
        subprocess.run(["umount", "-l", self.folder])

    def hit(self, name, node, rng):
        self.note(f"{name} {node}")
        if os.path.exists(os.path.join(self.folder, "latest.ckpt")):
            tensors(self.folder)
        self.faults.append(Fault(name, node))
        self.faults[-1].hits = FAULTS[name](self, node, rng) or set()


# The faults: each hits a node of a job, and returns the nodes whose completed steps it takes along.


def worker_killed(job, node, _):
    job.signal_workers(node, signal.SIGKILL)
    return {node}


def worker_stopped(job, node, _):
    job.signal_workers(node, signal.SIGSTOP)
    return {node}


def launcher_killed(job, node, rng):
    job.signal(node, signal.SIGKILL)
    move_node_0(job, node, rng)
    return {node}


def launcher_stopped(job, node, rng):
    job.signal(node, signal.SIGSTOP)
    job.signal_later(job.nodes[node].process, signal.SIGCONT, rng.uniform(1, 20))
    return {node}


def link_down(job, node, rng, seconds=(0.5, 4)):
    name = job.soak.network.names[node]
    ip("-n", name, "link", "set", "net", "down")
    job.later(rng.uniform(*seconds), lambda: ip("-n", name, "link", "set", "net", "up"))
    return {node}


def cut(job, node, rng):
    """A partition of 2 and 1, longer than --node-timeout."""
    link_down(job, node, rng, (15, 45))
    move_node_0(job, node, rng)
    return {node}


def one_way(job, node, rng):
    """What a node sends to another one does not arrive."""
    name, other = job.soak.network.names[node], (node + rng.randrange(1, NODES)) % NODES
    route = ["blackhole", f"10.77.0.{other + 1}/32"]
    ip("-n", name, "route", "add", *route, check=False)
    job.later(rng.uniform(1, 30), lambda: ip("-n", name, "route", "del", *route, check=False))
    return {node}


def slow(job, node, rng):
    job.soak.network.shape(node, "tbf", "rate", "1mbit", "burst", "32kb", "latency", "400ms")
    job.later(rng.uniform(3, 20), lambda: job.soak.network.shape(node))
    return {node}


def delayed(job, node, rng):
    job.soak.network.shape(node, "netem", "delay", "200ms", "50ms", "loss", "2%")
    job.later(rng.uniform(3, 20), lambda: job.soak.network.shape(node))
    return {node}


def sigterm(job, node, _):
    job.signal(node, signal.SIGTERM)


def ctrl_c_twice(job, node, rng):
    job.signal(node, signal.SIGINT)
    job.signal_later(job.nodes[node].process, signal.SIGINT, rng.uniform(0.05, 1))
    return set(range(NODES))


def signal_at_start(job, node, rng):
    """SIGTERM, and another signal in the first second of the next start."""
    job.nodes[node].early = rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP]), rng.uniform(0, 1)
    job.signal(node, signal.SIGTERM)


def folder_read_only(job, node, _):
    """The next start of a node has a work folder that it cannot write to."""
    job.nodes[node].read_only = True
    job.signal(node, signal.SIGTERM)


def disk_full(job, _, rng):
    ballast = os.path.join(job.folder, "ballast")
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=64k"], stderr=subprocess.DEVNULL)
    job.later(rng.uniform(0.2, 3), lambda: os.path.exists(ballast) and os.remove(ballast))


def spare(job, node, _):
    """Another launcher on one of the hosts, which waits for a place."""
    name = f"spare_{len(job.faults)}"
    job.extras.append((name, job.spawn(name, job.command(node, 7)), None))


def stranger(job, node, _):
    """A launcher with another secret. Without node 0 it waits out --join-timeout."""
    name = f"stranger_{len(job.faults)}"
    process = job.spawn(name, job.command(node, 1 + node % (NODES - 1)), FNET_JOB_SECRET="f" * 32)
    job.extras.append((name, process, {2, 6}))


def garbage(job, node, rng):
    """Connections that send noise or nothing."""
    name, script = f"garbage_{len(job.faults)}", [sys.executable, "-c", STRANGER]
    words = ["ip", "netns", "exec", job.soak.network.names[node], *script, f"10.77.0.{job.master + 1}", PORT, str(rng.uniform(1, 10))]
    job.extras.append((name, job.spawn(name, words), {0}))


# Those after which the launcher of node 0 lives on, if they hit another node; the others.
LED = [worker_killed, worker_stopped, launcher_killed, launcher_stopped, link_down, cut, slow, delayed, spare, stranger, garbage]
OTHERS = [one_way, sigterm, ctrl_c_twice, signal_at_start, folder_read_only, disk_full]
FAULTS = {function.__name__: function for function in LED + OTHERS}


def move_node_0(job, node, rng):
    """The cluster may choose another node 0 when it has lost that one."""
    if node == job.master and rng.random() < 0.6:
        job.master = (node + 1) % NODES
        job.note(f"node 0 is now on host {job.master}")


def at_random(job, seed):
    """Faults until the job is done or the time is over."""
    possible = [name for name in (FAULTS if job.kind != "led" else [one.__name__ for one in LED]) if name in job.soak.only]
    possible = [name for name in possible if job.kind != "fixed" or name != "spare"]
    for count in itertools.count():
        rng = random.Random(f"{seed} {count}")
        if rng.random() < 0.75:
            yield lambda: not job.faults or job.faults[-1].recovered
        until = time.monotonic() + rng.choice([0.3, 1, 3, 6, 12]) * rng.uniform(0.5, 1.5)
        yield lambda: time.monotonic() > until
        if job.soak.is_over() or not possible:
            return
        job.hit(rng.choice(possible), rng.randrange(1 if job.kind == "led" else 0, NODES), rng)


def scene(job):
    """Node 2 is lost and comes back; node 1 is lost, and a spare comes; node 0 is lost, and the others go on from their loops."""
    rng = job.soak.luck
    steps = lambda workers, count: lambda until=job.steps + count: job.workers == workers and job.steps >= until
    yield steps(3, 15)
    for number in (2, 1):
        node = job.nodes[number]
        job.hit("launcher_killed", number, rng)
        yield lambda: node.process is None
        # Its outer loop waits.
        node.start_at = float("inf")
        yield steps(2, 10)
        if number == 2:
            node.start_at = 0
        else:
            job.hit("spare", number, rng)
        yield steps(3, 10)
    job.nodes[1].start_at = 0
    job.hit("launcher_killed", 0, rng)
    job.master = 1
    yield steps(3, 10)


def tensors(folder):
    """The tensors of the newest checkpoint, which must be whole."""
    path = os.path.join(folder, "latest.ckpt")
    with open(path, "rb") as file:
        data = file.read()
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        slices = {name: entry["data_offsets"] for name, entry in json.loads(data[8:start]).items() if name != "__metadata__"}
    except ValueError as error:
        raise Violation(f"{path} is damaged: {error}")
    if start + max(end for _, end in slices.values()) != len(data):
        raise Violation(f"{path} is damaged: it has {len(data)} bytes")
    # The statistics of lost ranks other than 0 are lost with them.
    return {name: data[start + a : start + b] for name, (a, b) in slices.items() if not name.startswith("rank")}


def differences(first, second):
    first, second = tensors(first), tensors(second)
    return sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))


class Soak:
    def __init__(self, options, network):
        self.network, self.only, self.seconds = network, options.only, options.hours * 3600
        self.folder = tempfile.mkdtemp(prefix="fnet-soak-")
        self.whole = os.path.join(self.folder, "whole")
        self.epochs = 10 if options.hours < 0.1 else 60
        self.train = ["train", CONFIG]
        self.settings = [*SETTINGS, f"data.root={self.folder}/data", f"train.epochs={self.epochs}", f"evaluation.interval={self.epochs // 2}"]
        own = {"FNET_JOB_SECRET": f"{random.getrandbits(128):032x}", MARK: self.folder, "OMP_NUM_THREADS": "1"}
        self.environment = {**os.environ, **own}
        # Not every kernel has netem.
        if not network.shape(0, "netem", "delay", "1ms"):
            self.only = [name for name in self.only if name != "delayed"]
        network.shape(0)
        # Choices that do not count for the seed.
        self.luck = random.Random()
        self.jobs, self.samples, self.growth, self.said, self.sampled = [], {}, {}, 0, 0

    def is_over(self):
        return time.monotonic() - self.began > self.seconds

    def processes(self):
        """The processes of this soak with their parents and names."""
        found = []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/environ", "rb") as file:
                    if f"{MARK}={self.folder}".encode() not in file.read().split(b"\0"):
                        continue
                with open(f"/proc/{pid}/stat") as file:
                    name, _, rest = file.read().partition("(")[2].rpartition(")")
                found.append((int(pid), int(rest.split()[1]), name))
            except OSError:
                pass
        return found

    def tick(self, job):
        now = time.monotonic()
        if now - self.sampled > 2:
            self.sampled = now
            self.sample(now)
        if now - self.said > 15:
            self.said = now
            clock = lambda seconds: f"{int(seconds) // 3600}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
            done = f"{sum(one.steps for one in self.jobs)} steps and {sum(len(one.faults) for one in self.jobs)} faults in all"
            place = f"job {len(self.jobs)} ({job.kind}), epoch {job.row[0]} of {self.epochs}"
            print(f"{clock(now - self.began)} of {clock(self.seconds)}, {place}, {done}", file=sys.stderr, flush=True)

    def sample(self, now):
        """Memory and open files of each process: the least of some samples after its start and of the last ones."""
        found = self.processes()
        for pid, _, name in found:
            try:
                with open(f"/proc/{pid}/statm") as file:
                    resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
                used = {"MiB": resident, "files": len(os.listdir(f"/proc/{pid}/fd"))}
            except OSError:
                continue
            since, first, last = self.samples.setdefault(pid, (now, [], collections.deque(maxlen=5)))
            if now - since > STARTED:
                first += [used] * (len(first) < 5)
                last.append(used)
            if len(first) < 5 or not name.startswith("fnet-"):
                continue
            for what, most in MAX_GROWTH.items():
                growth = min(one[what] for one in last) - min(one[what] for one in first)
                self.growth[name, what] = max(self.growth.get((name, what), 0), growth)
                if growth > most:
                    raise Violation(f"process {pid} ({name}) has grown by {growth} {what} in {now - since:.0f} s")
        self.samples = {pid: self.samples[pid] for pid, _, _ in found if pid in self.samples}

    def run(self, kinds, seed):
        synth = [LAUNCH, "--quiet", "synth", "--out", f"{self.folder}/data", "--images", "32", "--val-images", "8", "--sides", "96", "128"]
        whole = [LAUNCH, "--quiet", "--device", "cpu", "--nproc", str(NODES), *self.train, "--work-dir", self.whole, "--set", *self.settings]
        for words in [synth, whole] if "fixed" in kinds else [synth]:
            subprocess.run(words, check=True, env=self.environment, stdout=subprocess.DEVNULL)
        with open(f"{self.folder}/data/annotations/instances_train.json") as file:
            # Images without objects are left out.
            self.images = len({one["image_id"] for one in json.load(file)["annotations"] if not one["iscrowd"]})
        turns, self.began = itertools.cycle(kinds), time.monotonic()
        for number in itertools.count():
            is_scene = number == 0 and "elastic" in kinds
            job = Job(self, "elastic" if is_scene else next(turns), f"job_{number}", number % 2 == 1)
            self.jobs.append(job)
            try:
                job.run(scene(job) if is_scene else at_random(job, f"{seed} {number}"))
            finally:
                job.close()
            if self.is_over():
                return

    def table(self):
        print("| fault | times | median s to the next step | maximum |\n| --- | --- | --- | --- |")
        faults = [fault for job in self.jobs for fault in job.faults]
        for name, count in collections.Counter(fault.name for fault in faults).most_common():
            seconds = [fault.recovered for fault in faults if fault.name == name and fault.recovered] or [0]
            print(f"| {name} | {count} | {statistics.median(seconds):.1f} | {max(seconds):.1f} |")
        kinds = collections.Counter(job.kind for job in self.jobs)
        codes = sum((job.codes for job in self.jobs), collections.Counter())
        print(f"\njobs: {', '.join(f'{count} {kind}' for kind, count in kinds.items())}; steps: {sum(job.steps for job in self.jobs)}")
        print(f"times that steps were trained again, which no node had any more: {sum(job.unavoidable for job in self.jobs)}")
        print(f"exit codes of launchers: {', '.join(f'{code}: {count}' for code, count in sorted(codes.items()))}")
        for (name, what), growth in sorted(self.growth.items()):
            print(f"growth of {name}, at most: {growth} {what}")


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("hours", type=float, nargs="?", default=1.0)
    options.add_argument("seed", type=int, nargs="?", default=0, help="0 draws one")
    options.add_argument("--kind", type=lambda text: text.split(","), default=["fixed", "elastic", "led"])
    options.add_argument("--only", type=lambda text: text.split(","), default=list(FAULTS))
    options = options.parse_args()
    seed = options.seed or random.randrange(1, 10**6)
    print(f"seed {seed}", flush=True)
    # So that all is cleared away.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with Network() as network:
        soak, code = Soak(options, network), 0
        try:
            soak.run(options.kind, seed)
        except Violation as violation:
            job, code = soak.jobs[-1], 1
            found = f"VIOLATION: {violation}\nlogs: {job.logs} (faults.txt) and {job.folder}_kept"
        finally:
            if not code:
                shutil.rmtree(soak.folder, ignore_errors=True)
    soak.table()
    if code:
        print(f"\n{found}\nagain: make soak HOURS={options.hours:g} SEED={seed}")
    sys.exit(code)


if __name__ == "__main__":
    main()
