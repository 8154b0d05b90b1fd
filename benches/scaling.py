#!/usr/bin/env python3
"""Checks the model of docs/scaling.md: a step's predicted and measured time, with workers in network namespaces whose links tc limits.

    benches/scaling.py [--iters 6]      as root, with ip and tc; fnet-launch in target/release

The compute of a step is what its workers take at the same time without sums (forward, backward, update of `benchmark train`);
the bandwidth is tc's rate, less 5 % for headers, and what an all-reduce of the same workers reaches without a limit. What
`fnet-launch --dry-run --step-time` makes of them is the prediction. With more workers than cores use `nice -n -20`, not a
real-time priority: its long turns would make the workers wait for one another.
"""

import argparse
import contextlib
import json
import os
import subprocess
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LAUNCH = os.path.join(ROOT, "target/release/fnet-launch")
# Many weights and little to compute.
CONFIG = os.path.join(ROOT, "configs/demo.toml")
SETTINGS = ["model.neck.out_channels=128", "model.roi_head.bbox_fc_channels=2048", "data.samples_per_gpu=1"]
# Nodes, workers of a node, Mbit/s of a node, further settings.
CASES = [(2, 1, 1000, ""), (2, 1, 4000, ""), (4, 1, 1000, ""), (8, 1, 1000, ""), (8, 1, 4000, ""), (2, 2, 1000, ""), (2, 4, 1000, ""), (4, 1, 1000, "bf16")]


def ip(*words):
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def network(nodes, rate):
    """Namespaces fnet-0, ..., each with an interface `net` to a switch, of `rate` Mbit/s if given."""
    names = ["fnet-switch", *(f"fnet-{node}" for node in range(nodes))]
    try:
        for name in names:
            ip("netns", "add", name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", names[0], "link", "add", "switch", "type", "bridge")
        ip("-n", names[0], "link", "set", "switch", "up")
        for node, name in enumerate(names[1:]):
            ip("-n", name, "link", "add", "net", "type", "veth", "peer", "name", f"port{node}", "netns", names[0])
            ip("-n", names[0], "link", "set", f"port{node}", "master", "switch", "up")
            ip("-n", name, "addr", "add", f"10.77.0.{node + 1}/24", "dev", "net")
            ip("-n", name, "link", "set", "net", "up")
            if rate is None:
                continue
            limit = ["tc", "qdisc", "add", "dev", "net", "root", "tbf", "rate", f"{rate}mbit", "burst", "256kb", "latency", "100ms"]
            ip("netns", "exec", name, *limit)
        yield names[1:]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def run(words, **options):
    done = subprocess.run(words, capture_output=True, text=True, **options)
    if done.returncode != 0:
        raise SystemExit(f"error: {' '.join(words)} ended with code {done.returncode}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(nodes, workers, rate, command):
    with network(nodes, rate) as names:
        of_node = lambda node, name: [
            *["ip", "netns", "exec", name, LAUNCH, "--device", "cpu", "--nproc", str(workers), "--nnodes", str(nodes), "--node-rank", str(node)],
            *["--master-addr", "10.77.0.1", "--master-port", "29500", "--iface", "net", "--bind", "none", *command],
        ]
        others = [subprocess.Popen(of_node(node, name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for node, name in enumerate(names) if node]
        try:
            return run(of_node(0, names[0]))
        finally:
            for other in others:
                other.wait()


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--iters", default="6")
    options.add_argument("--cases", default=f"0:{len(CASES)}", help="a part of the cases, for example 0:2")
    options = options.parse_args()
    iters = options.iters
    first, last = map(int, options.cases.split(":"))
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as data:
        subprocess.run([LAUNCH, "--quiet", "synth", "--out", data, "--images", "64", "--val-images", "2"], check=True)
        print("| nodes x workers | Mbit/s | GB/s without limit | compute, s | predicted, s | measured, s | predicted / measured |\n| --- | --- | --- | --- | --- | --- | --- |")
        for nodes, workers, rate, compression in CASES[first:last]:
            settings = ["--json", "--set", *SETTINGS, *([f"train.grad_compression={compression}"] if compression else [])]
            command = ["benchmark", "train", CONFIG, "--shape", "192", "192", "--iters", iters, *settings]
            report = measure(nodes, workers, rate, command)
            parts = report["parts_ms"]
            step = (parts["forward"] + parts["backward"] + parts["optimizer"]) / 1e3
            sums = measure(nodes, workers, None, ["benchmark", "comm", "--min-bytes", "16M", "--max-bytes", "16M", "--iters", "5", "--json"])
            of_cores = sums["sizes"][0]["bus_gb_per_s"]
            links = f"{of_cores},{0.95 * rate / 8e3}"
            dry = ["--device", "cpu", "--nproc", str(workers), "--nnodes", str(nodes), "--node-rank", "0", "--master-addr", "localhost", "--dry-run"]
            asked = ["train", CONFIG, "--step-time", str(step), "--links", links, "--no-validate", *settings, f"data.root={data}"]
            predicted = run([LAUNCH, *dry, *asked])["forecast"]["update_seconds"]
            measured = report["ms"]["median"] / 1e3
            name = f"{nodes} x {workers}{' ' + compression if compression else ''}"
            print(f"| {name} | {rate} | {of_cores:.2f} | {step:.3f} | {predicted:.3f} | {measured:.3f} | {predicted / measured:.2f} |", flush=True)


main()
