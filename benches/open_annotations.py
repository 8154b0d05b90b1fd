#!/usr/bin/env python3
"""Compares opening an annotation file with pycocotools' COCO() and with fnet, in turns.

    fnet-launch synth --out /tmp/large --annotations-only 860001 --sides 320 640
    .venv/bin/python benches/open_annotations.py /tmp/large/annotations/instances_train.json --ranks 8

Times are the best of all repetitions. Memory is the maximum growth of a process. MMDetection opens the file in every
rank, so its memory on a node is that of one process times the number of ranks.
"""

import argparse
import json
import subprocess
import sys

REFERENCE = """
import resource, sys, time
from pycocotools.coco import COCO
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
sys.stdout, stdout = sys.stderr, sys.stdout
COCO(sys.argv[1])
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(seconds, (peak - before) / 1024, file=stdout)
"""


def reference(file):
    output = subprocess.run([sys.executable, "-c", REFERENCE, file], check=True, capture_output=True, text=True).stdout
    seconds, peak = map(float, output.split())
    return {"seconds": seconds, "peak_mb": peak}


def fnet(file, ranks):
    command = ["cargo", "bench", "--quiet", "--bench", "open_annotations", "--", file, str(ranks)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file")
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    arguments = parser.parse_args()
    fnet(arguments.file, 1)  # builds it, and puts the file into the page cache
    runs = [(reference(arguments.file), fnet(arguments.file, 1)) for _ in range(arguments.repeat)]
    pycoco, own = (min((run[side] for run in runs), key=lambda run: run["seconds"]) for side in (0, 1))
    node = fnet(arguments.file, arguments.ranks)
    print(f"pycocotools      {pycoco['seconds']:7.2f} s  {pycoco['peak_mb']:7.0f} MB")
    print(f"fnet             {own['seconds']:7.2f} s  {own['peak_mb']:7.0f} MB, {own['kept_mb']:.0f} MB after opening")
    print(f"fnet, {node['ranks']} ranks    {node['seconds']:7.2f} s  {node['peak_mb']:7.0f} MB, {node['kept_mb']:.0f} MB after opening")
    print(f"times faster     {pycoco['seconds'] / own['seconds']:7.1f}    of its memory {own['peak_mb'] / pycoco['peak_mb']:.3f}")
    print(f"memory of {node['ranks']} ranks as a part of one pycocotools: {node['peak_mb'] / pycoco['peak_mb']:.3f}")


if __name__ == "__main__":
    main()
