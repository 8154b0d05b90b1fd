"""Runs two builds in turns and compares their times. Called by scripts/compare.sh, which says how."""

import json
import os
import random
import re
import statistics
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
CONFIG = os.path.join(ROOT, "configs/mask_rcnn_fasternet_s_fpn_1x_coco.toml")
ROUNDS = int(os.environ.get("FNET_COMPARE_ROUNDS", "5"))


def coco_mini():
    data = os.environ.get("FNET_TEST_DATA") or sys.exit("error: the bench data needs FNET_TEST_DATA, a folder with data/coco_mini")
    root = os.path.join(data, "data/coco_mini")
    return ["--set", f"data.root={root}", "data.train.ann_file=annotations/instances_train2017.json", "data.train.img_prefix=train2017"]


# The command line of each bench, and how to find its milliseconds in the JSON that it prints.
BENCHES = {
    "train320": (lambda: ["train", CONFIG, "--batch", "2", "--shape", "320", "320", "--iters", "4"], lambda out: out["ms"]["median"]),
    "train800": (lambda: ["train", CONFIG, "--batch", "2", "--shape", "800", "1344", "--iters", "3"], lambda out: out["ms"]["median"]),
    "infer": (lambda: ["infer", CONFIG, "--shape", "800", "1280", "--max-iter", "8"], lambda out: out["ms"]["median"]),
    "data": (lambda: ["data", CONFIG, "--threads", "1", "--images", "92", *coco_mini()], lambda out: out["ms_per_image"]["total"]),
    "launch": (lambda: ["launch", "--repeat", "3", "--nproc", "2"], lambda out: out["fnet"]["first_all_reduce"]["median"] * 1000),
}


# The same work of MMDetection's layers alone, for OLD = reference.
REFERENCE = {
    "train320": ["train", "--batch", "2", "--shape", "320", "320", "--iters", "4"],
    "train800": ["train", "--batch", "2", "--shape", "800", "1344", "--iters", "3"],
    "infer": ["infer", "--shape", "800", "1280", "--iters", "7"],
}


def real_time():
    """The words before a command that give it real-time priority, if this user may."""
    words = ["chrt", "-r", "10"]
    try:
        return words if subprocess.run([*words, "true"], capture_output=True).returncode == 0 else []
    except FileNotFoundError:
        return []


def measure(priority, folder, name):
    """Milliseconds of a bench with the build in `folder`."""
    if folder == "reference":
        script = os.path.join(ROOT, "benches/reference_layers.py")
        return float(re.search(r"median (\d+) ms", run([*priority, sys.executable, script, *REFERENCE[name]]))[1])
    words, milliseconds = BENCHES[name]
    output = run([*priority, os.path.join(folder, "fnet-launch"), "--device", "cpu", "benchmark", *words(), "--json"])
    return milliseconds(json.loads(output.splitlines()[-1]))


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"error: {' '.join(command)} ended with code {done.returncode}:\n{done.stderr}")
    return done.stdout


def interval(ratios):
    """90 % of the medians of samples drawn from the ratios with replacement."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000))
    return medians[100], medians[1899]


def main():
    old, new, *names = sys.argv[1:]
    benches = REFERENCE if old == "reference" else BENCHES
    unknown = [name for name in names if name not in benches]
    if unknown:
        sys.exit(f"error: no bench {', '.join(unknown)}; there are {', '.join(benches)}")
    priority = real_time()
    print(f"{ROUNDS} pairs, {'real-time' if priority else 'normal'} priority, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    print("| bench | old, ms | new, ms | old / new | 90 % interval |\n| --- | --- | --- | --- | --- |")
    for name in names or benches:
        times = [], []
        for _ in range(ROUNDS):
            for taken, folder in zip(times, (old, new)):
                taken.append(measure(priority, folder, name))
        ratios = [a / b for a, b in zip(*times)]
        low, high = interval(ratios)
        medians = " | ".join(f"{statistics.median(taken):.1f}" for taken in times)
        print(f"| {name} | {medians} | {statistics.median(ratios):.3f} | {low:.3f} to {high:.3f} |", flush=True)


main()
