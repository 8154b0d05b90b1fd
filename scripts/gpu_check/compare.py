#!/usr/bin/env python3
"""Comparisons of gpu_check.sh: losses of two logs, detections of two result files, numbers of benchmarks.

Every command prints one line with what was measured and ends with code 0 if it is as it should be, else 1.
"""

import argparse
import glob
import json
import math
import os
import sys


def steps(work_dir):
    """Training steps of a work folder's logs, by (epoch, iteration); later logs win."""
    found = {}
    paths = sorted(glob.glob(os.path.join(work_dir, "*.log.json")))
    for path in paths:
        with open(path, encoding="utf-8") as lines:
            for line in lines:
                if not line.endswith("\n"):
                    continue  # a killed writer's last line
                record = json.loads(line)
                if record.get("mode") == "train":
                    # A loss that is not finite is null in JSON.
                    record["loss"] = math.nan if record["loss"] is None else record["loss"]
                    found[record["epoch"], record["iter"]] = record
    return found


def compare_losses(first, second, least):
    """The largest relative difference of the total loss over the steps that both have."""
    common = sorted(first.keys() & second.keys())
    if len(common) < least:
        return None, len(common)
    differences = [abs(first[k]["loss"] - second[k]["loss"]) / abs(second[k]["loss"]) for k in common]
    worst = max(differences) if all(map(math.isfinite, differences)) else math.inf
    return worst, len(common)


def losses(arguments):
    first, second = steps(arguments.first), steps(arguments.second)
    if arguments.epoch:
        first = {key: value for key, value in first.items() if key[0] == arguments.epoch}
    worst, count = compare_losses(first, second, arguments.least)
    if worst is None:
        print(f"only {count} steps in common, expected {arguments.least}")
        return False
    print(f"{count} steps, largest relative difference {worst:.1e} (limit {arguments.tolerance:g})")
    return worst <= arguments.tolerance


def finite(arguments):
    """Every step's total loss is a number, and their mean is near that of another run."""
    found, other = steps(arguments.first), steps(arguments.second)
    values = [record["loss"] for record in found.values()]
    common = found.keys() & other.keys()
    if len(values) < arguments.least or not common:
        print(f"{len(values)} steps, expected {arguments.least}")
        return False
    mean = sum(found[key]["loss"] for key in common) / len(common)
    reference = sum(other[key]["loss"] for key in common) / len(common)
    difference = abs(mean - reference) / abs(reference)
    print(f"{len(values)} steps, mean loss {mean:.4f}, in float32 {reference:.4f}")
    return all(map(math.isfinite, values)) and difference <= arguments.tolerance


def overlap(first, second):
    """Intersection over union of two boxes x, y, width, height."""
    left, top = max(first[0], second[0]), max(first[1], second[1])
    right = min(first[0] + first[2], second[0] + second[2])
    bottom = min(first[1] + first[3], second[1] + second[3])
    shared = max(0.0, right - left) * max(0.0, bottom - top)
    union = first[2] * first[3] + second[2] * second[3] - shared
    return shared / union if union > 0 else 0.0


def unmatched(first, second, least_score, score_tolerance):
    """Detections of `first` from `least_score` on that have no counterpart of their own in `second`."""
    groups = {}
    for one in second:
        groups.setdefault((one["image_id"], one["category_id"]), []).append(one)
    lost, count = [], 0
    for one in sorted(first, key=lambda one: -one["score"]):
        if one["score"] < least_score:
            continue
        count += 1
        group = groups.get((one["image_id"], one["category_id"]), [])
        same = [
            other
            for other in group
            if abs(other["score"] - one["score"]) <= score_tolerance and overlap(other["bbox"], one["bbox"]) > 0.95
        ]
        if same:
            group.remove(max(same, key=lambda other: overlap(other["bbox"], one["bbox"])))
        else:
            lost.append(one)
    return lost, count


def read_detections(path):
    """The boxes of a COCO results file, or of the one for boxes beside it (`F.bbox.json` for `F.json`)."""
    stem, extension = os.path.splitext(path)
    for candidate in (path, f"{stem}.bbox{extension}"):
        if os.path.exists(candidate):
            with open(candidate, encoding="utf-8") as file:
                return json.load(file)
    raise FileNotFoundError(path)


def detections(arguments):
    first, second = read_detections(arguments.first), read_detections(arguments.second)
    least, tolerance = arguments.least_score, arguments.tolerance
    lost, count = unmatched(first, second, least, tolerance)
    extra, others = unmatched(second, first, least, tolerance)
    print(
        f"{count} and {others} detections from score {least:g} on; without a counterpart of the same class, "
        f"IoU > 0.95 and score within {tolerance:g}: {len(lost)} and {len(extra)}"
    )
    return count >= arguments.least and others >= arguments.least and not lost and not extra


def number(arguments):
    """Images per second from a benchmark's JSON."""
    with open(arguments.first, encoding="utf-8") as file:
        report = json.load(file)
    rate, milliseconds = report["images_per_second"], report["ms"]["median"]
    memory = report["peak_memory_bytes"] / 2**20
    print(f"{rate:.2f} img/s, {milliseconds:.1f} ms (median), peak memory {memory:.0f} MiB")
    return math.isfinite(rate) and rate > 0


def classes(arguments):
    """Number of categories of an annotation file."""
    with open(arguments.first, encoding="utf-8") as file:
        print(len(json.load(file)["categories"]))
    return True


def self_test(_arguments):
    """The comparisons accept what is equal and refuse what is not."""
    records = {(1, step): {"loss": 2.0 + step} for step in range(1, 21)}
    moved = {key: {"loss": value["loss"] * (1.01 if key == (1, 7) else 1.0)} for key, value in records.items()}
    broken = dict(records)
    broken[1, 3] = {"loss": math.nan}
    assert compare_losses(records, records, 20) == (0.0, 20)
    assert abs(compare_losses(moved, records, 20)[0] - 0.01) < 1e-9
    assert compare_losses(broken, records, 20)[0] == math.inf
    assert compare_losses(records, {}, 20) == (None, 0)

    def box(score, x=0.0, label=1, image=1):
        return {"image_id": image, "category_id": label, "bbox": [x, 0.0, 100.0, 100.0], "score": score}

    two = [box(0.9), box(0.5, x=1.0)]
    assert unmatched(two, two, 0.1, 1e-3) == ([], 2)
    assert len(unmatched(two, two[:1], 0.1, 1e-3)[0]) == 1
    assert len(unmatched(two, [box(0.9), box(0.502)], 0.1, 1e-3)[0]) == 1, "a score too far away"
    assert len(unmatched([box(0.9)], [box(0.9, x=10.0)], 0.1, 1e-3)[0]) == 1, "a box too far away"
    assert len(unmatched([box(0.9)], [box(0.9, label=2)], 0.1, 1e-3)[0]) == 1, "another class"
    assert len(unmatched([box(0.9)], [box(0.9, image=2)], 0.1, 1e-3)[0]) == 1, "another image"
    assert len(unmatched([box(0.9), box(0.9)], [box(0.9)], 0.1, 1e-3)[0]) == 1, "one counterpart serves once"
    assert unmatched([box(0.05)], [], 0.1, 1e-3) == ([], 0)
    print("the comparisons accept what is equal and refuse what is not")
    return True


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)

    def command(name, run, operands, **defaults):
        one = commands.add_parser(name)
        for operand in operands:
            one.add_argument(operand)
        for option, default in defaults.items():
            one.add_argument("--" + option.replace("_", "-"), type=type(default), default=default)
        one.set_defaults(run=run)

    command("losses", losses, ["first", "second"], least=1, tolerance=1e-3, epoch=0)
    command("finite", finite, ["first", "second"], least=1, tolerance=0.05)
    command("detections", detections, ["first", "second"], least=1, least_score=0.3, tolerance=1e-3)
    command("number", number, ["first"])
    command("classes", classes, ["first"])
    command("self-test", self_test, [])
    arguments = parser.parse_args()
    return 0 if arguments.run(arguments) else 1


if __name__ == "__main__":
    sys.exit(main())
