#!/usr/bin/env python3
"""A lower bound of MMDetection's time on this machine: its layers alone.

The layers of Mask R-CNN with FasterNet-S as PyTorch modules in MMDetection's memory layout (NCHW, float32), with random
inputs. The rest of MMDetection's work (data, anchors, assignment, proposals, RoIAlign, losses, optimizer, pasting) is not
included, so MMDetection takes longer than the printed time.

    benches/reference_layers.py train --batch 2 --shape 320 320     a training step
    benches/reference_layers.py infer --shape 800 1280              an image with 100 detections
"""

import argparse
import statistics
import time

import torch
from torch import nn

EMBED, DEPTHS, FPN, CLASSES = 128, (1, 2, 13, 2), 256, 80
TRAIN_ROIS, TRAIN_POSITIVES = 512, 10
TEST_ROIS, TEST_DETECTIONS = 1000, 100


class Block(nn.Module):
    """Partial convolution of a quarter of the channels, then two pointwise convolutions around BatchNorm and ReLU."""

    def __init__(self, channels):
        super().__init__()
        self.split = [channels // 4, channels - channels // 4]
        self.partial = nn.Conv2d(self.split[0], self.split[0], 3, 1, 1, bias=False)
        self.mlp = nn.Sequential(
            nn.Conv2d(channels, 2 * channels, 1, bias=False),
            nn.BatchNorm2d(2 * channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * channels, channels, 1, bias=False),
        )

    def forward(self, x):
        convolved, rest = torch.split(x, self.split, dim=1)
        return x + self.mlp(torch.cat((self.partial(convolved), rest), 1))


class Pyramid(nn.Module):
    """Backbone, feature pyramid and proposal head; returns all their outputs."""

    def __init__(self):
        super().__init__()
        widths = [EMBED << stage for stage in range(4)]
        self.patch = nn.Sequential(nn.Conv2d(3, EMBED, 4, 4, bias=False), nn.BatchNorm2d(EMBED))
        self.stages = nn.ModuleList(
            nn.Sequential(*(Block(width) for _ in range(depth))) for width, depth in zip(widths, DEPTHS)
        )
        self.merges = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, 2 * width, 2, 2, bias=False), nn.BatchNorm2d(2 * width))
            for width in widths[:3]
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)
        self.lateral = nn.ModuleList(nn.Conv2d(width, FPN, 1) for width in widths)
        self.output = nn.ModuleList(nn.Conv2d(FPN, FPN, 3, padding=1) for _ in widths)
        self.rpn = nn.Sequential(nn.Conv2d(FPN, FPN, 3, padding=1), nn.ReLU(inplace=True))
        self.rpn_cls, self.rpn_reg = nn.Conv2d(FPN, 3, 1), nn.Conv2d(FPN, 12, 1)

    def forward(self, x):
        x = self.patch(x)
        levels = []
        for stage in range(4):
            x = self.stages[stage](x)
            levels.append(self.lateral[stage](self.norms[stage](x)))
            if stage < 3:
                x = self.merges[stage](x)
        for stage in (2, 1, 0):
            upper = nn.functional.interpolate(levels[stage + 1], size=levels[stage].shape[2:], mode="nearest")
            levels[stage] = levels[stage] + upper
        levels = [output(level) for output, level in zip(self.output, levels)]
        levels.append(nn.functional.max_pool2d(levels[-1], 1, stride=2))
        hidden = [self.rpn(level) for level in levels]
        return levels + [self.rpn_cls(x) for x in hidden] + [self.rpn_reg(x) for x in hidden]


def box_head():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(FPN * 49, 1024), nn.ReLU(inplace=True), nn.Linear(1024, 1024), nn.ReLU(inplace=True),
        nn.Linear(1024, 5 * CLASSES + 1),
    )  # fmt: skip


def mask_head():
    convs = [layer for _ in range(4) for layer in (nn.Conv2d(FPN, FPN, 3, padding=1), nn.ReLU(inplace=True))]
    upsample = [nn.ConvTranspose2d(FPN, FPN, 2, 2), nn.ReLU(inplace=True)]
    return nn.Sequential(*convs, *upsample, nn.Conv2d(FPN, CLASSES, 1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "infer"])
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--shape", type=int, nargs=2, default=(800, 1344), metavar=("H", "W"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--iters", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train = arguments.what == "train"
    batch = arguments.batch if train else 1
    rois = batch * TRAIN_ROIS if train else TEST_ROIS
    masks = batch * TRAIN_POSITIVES if train else TEST_DETECTIONS
    modules = [module.train(train) for module in (Pyramid(), box_head(), mask_head())]
    inputs = [
        torch.randn(batch, 3, *arguments.shape),
        torch.randn(rois, FPN, 7, 7, requires_grad=train),
        torch.randn(masks, FPN, 14, 14, requires_grad=train),
    ]
    seconds = []
    with torch.set_grad_enabled(train):
        for _ in range(arguments.iters + 1):
            started = time.perf_counter()
            outputs = [module(x) for module, x in zip(modules, inputs)]
            if train:
                loss = sum(x.mean() for x in outputs[0]) + outputs[1].mean() + outputs[2].mean()
                loss.backward()
            seconds.append(time.perf_counter() - started)
    times = seconds[1:]
    print(
        f"{arguments.what} {batch}x{arguments.shape[0]}x{arguments.shape[1]}, {arguments.threads} threads: "
        f"median {1e3 * statistics.median(times):.0f} ms of {len(times)} ({1e3 * min(times):.0f} to {1e3 * max(times):.0f})"
    )


if __name__ == "__main__":
    main()
