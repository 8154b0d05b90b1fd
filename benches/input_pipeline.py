"""Compares fnet's input pipeline with OpenCV's imread and with MMDetection's operations, on the same images.

    .venv-cv/bin/python benches/input_pipeline.py CONFIG [--fnet target/release/fnet-launch] [--rounds 5]

It needs opencv-python-headless, numpy and pycocotools, in a separate environment:
`python3 -m venv .venv-cv && .venv-cv/bin/pip install opencv-python-headless==4.10.0.84 "numpy<2" pycocotools`.
Everything runs on one thread. The parts run in turns, and the best round of each counts. "reference" is the work of
MMDetection's training pipeline with these libraries for each image: decode, masks from polygons, resize, flip,
normalize, pad, and transpose to channels first.
"""

import argparse
import json
import os
import random
import subprocess
import time
import tomllib

import cv2
import numpy as np
from pycocotools import mask as mask_api

MEAN = np.array([[123.675, 116.28, 103.53]], np.float64)
STD_INVERSE = 1 / np.array([[58.395, 57.12, 57.375]], np.float64)
SCALE = (1333, 800)
DIVISOR = 32


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--fnet", default="target/release/fnet-launch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=184, help="images that fnet makes in each measurement")
    return parser.parse_args()


def training_set(config):
    """Path, size and objects of each training image."""
    with open(config, "rb") as file:
        data = tomllib.load(file)["data"]
    root = os.environ.get("FNET_DATA_ROOT", data["root"])
    with open(os.path.join(root, data["train"]["ann_file"])) as file:
        coco = json.load(file)
    objects = {}
    for annotation in coco["annotations"]:
        if not annotation.get("iscrowd"):
            objects.setdefault(annotation["image_id"], []).append(annotation)
    folder = os.path.join(root, data["train"]["img_prefix"])
    return [
        (os.path.join(folder, image["file_name"]), image["height"], image["width"], objects[image["id"]])
        for image in coco["images"]
        if image["id"] in objects
    ]


def bitmap(segmentation, height, width):
    if isinstance(segmentation, list):
        rle = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        rle = mask_api.frPyObjects(segmentation, height, width)
    else:
        rle = segmentation
    return mask_api.decode(rle)


def reference(path, height, width, objects, with_masks):
    with open(path, "rb") as file:
        image = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    masks = [bitmap(item["segmentation"], height, width) for item in objects] if with_masks else []
    factor = min(SCALE[0] / max(height, width), SCALE[1] / min(height, width))
    size = (int(width * factor + 0.5), int(height * factor + 0.5))
    image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
    masks = [cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) for mask in masks]
    if random.random() < 0.5:
        image = np.flip(image, axis=1)
        masks = [np.flip(mask, axis=1) for mask in masks]
    image = image.copy().astype(np.float32)
    cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)
    cv2.subtract(image, MEAN, image)
    cv2.multiply(image, STD_INVERSE, image)
    below, right = -size[1] % DIVISOR, -size[0] % DIVISOR
    image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0)
    masks = [cv2.copyMakeBorder(mask, 0, below, 0, right, cv2.BORDER_CONSTANT, value=0) for mask in masks]
    return np.ascontiguousarray(image.transpose(2, 0, 1)), np.stack(masks) if masks else None


def seconds_each(work, images):
    started = time.perf_counter()
    for image in images:
        work(*image)
    return (time.perf_counter() - started) / len(images)


def fnet(options, *more):
    command = [options.fnet, "benchmark", "data", options.config, "--json", "--images", str(options.images), *more]
    report = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return 1 / report["images_per_second_per_thread"], report["ms_per_image"]


def main():
    options = arguments()
    cv2.setNumThreads(1)
    images = training_set(options.config)
    parts = {
        "cv2.imread": lambda: (seconds_each(lambda path, *_: cv2.imread(path), images), None),
        "fnet with masks": lambda: fnet(options),
        "fnet without masks": lambda: fnet(options, "--no-masks"),
        "reference with masks": lambda: (seconds_each(lambda *p: reference(*p, True), images), None),
        "reference without masks": lambda: (seconds_each(lambda *p: reference(*p, False), images), None),
    }
    best = {}
    for _ in range(options.rounds):
        for name, measure in parts.items():
            found = measure()
            if name not in best or found[0] < best[name][0]:
                best[name] = found
    imread = best["cv2.imread"][0]
    print(f"OpenCV {cv2.__version__}, {len(images)} images, best of {options.rounds} rounds")
    for name, (seconds, stages) in best.items():
        print(f"{name:24} {1 / seconds:7.1f} images/s {seconds * 1e3:7.2f} ms  {imread / seconds:.3f} of imread")
        if stages:
            print("  " + ", ".join(f"{stage} {ms:.2f}" for stage, ms in stages.items()) + " ms")


if __name__ == "__main__":
    main()
