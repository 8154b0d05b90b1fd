"""Writes the inputs that fuzzing starts from: fuzz/seeds.py FOLDER makes one folder per target there.

Needs torch and Pillow, which .venv has.
"""

import collections
import io
import json
import pathlib
import pickle
import struct
import sys
import zipfile

import torch
from PIL import Image

FOLDER = pathlib.Path(sys.argv[1])


def write(target, name, content):
    path = FOLDER / target / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def annotation(**changed):
    base = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [4, 5, 20, 10], "area": 200, "iscrowd": 0,
            "segmentation": [[4, 5, 24, 5, 24, 15, 4, 15]]}
    return {key: value for key, value in (base | changed).items() if value is not ...}


def coco(*annotations, image=None, categories=None):
    images = [image or {"id": 1, "file_name": "1.png", "width": 64, "height": 48}]
    return json.dumps({"images": images, "annotations": annotations,
                       "categories": categories or [{"id": 7, "name": "box"}, {"id": 3, "name": "cup"}]})


RUNS = {"size": [48, 64], "counts": [100, 5, 2967]}
PACKED = {"size": [48, 64], "counts": "T35kj2"}
SETS = {
    "sound": coco(annotation(), annotation(id=2, category_id=3)),
    "text_ids": coco(annotation(image_id="1", category_id="7"), annotation(id="b")),
    "names": coco(annotation(image_id="a"), image={"id": "a", "file_name": "a.png", "width": "64", "height": "48"}),
    "bare": coco(annotation(id=..., area=..., iscrowd=...), annotation(id=2, bbox=...)),
    "runs": coco(annotation(segmentation=RUNS, iscrowd=1), annotation(id=2, segmentation=PACKED)),
    "odd_masks": coco(annotation(segmentation=[4, 5, 24, 5, 24, 15]), annotation(id=2, segmentation=[[1, 1, 5, 4]]),
                      annotation(id=3, segmentation=[])),
    "not_finite": coco(annotation(bbox=[float("nan"), 1, float("inf"), 2], area=float("-inf"))),
    "repeated": coco(annotation(), annotation(), annotation(image_id=9), annotation(category_id=9)),
    "booleans": coco(annotation(iscrowd=True, ignore=False, score=None, x={"y": ["]"]})),
    "no_size": coco(annotation(), image={"id": 1, "file_name": "1.png"}),
    "results": json.dumps([{"image_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5, "category_id": 1}]),
    "labelme": json.dumps({"version": "5", "shapes": [], "imagePath": "a.png"}),
}
for name, text in SETS.items():
    write("annotations", name, text)
write("annotations", "mark_and_lines", "\ufeff" + json.dumps(json.loads(SETS["sound"]), indent=1).replace("\n", "\r\n"))
write("annotations", "utf16", SETS["sound"].encode("utf-16"))
write("annotations", "gbk", SETS["sound"].replace('"1.png"', '"一.png"').encode("gbk"))
write("annotations", "cut_off", SETS["sound"][:150])

MASKS = ["[[1, 1, 5, 1, 5, 4, 1, 4]]", "[1, 1, 5, 1, 5, 4]", "[[1, 1, 5, 4]]", "[[-3.5, 2e1, 9, 1e2, 0.25, 7, 1]]",
         '{"size": [6, 7], "counts": [8, 3, 3, 3, 25]}', '{"size": [6, 7], "counts": "8333i0"}',
         '[{"size": [2, 2], "counts": [0, 1, 3]}, {"size": [2, 2], "counts": [3, 1]}]', "[[1,2,3,4,5,6],[7,8,9,10,11,12]]",
         "[[0, 0, 1e9, 0, 1e9, 1e9]]", "[]", "null"]
for number, text in enumerate(MASKS):
    write("masks", str(number), bytes([48, 64]) + text.encode())


def safetensors(tensors, metadata=None):
    header, data = ({"__metadata__": metadata} if metadata else {}), b""
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


TENSORS = {"model.a.weight": ("F32", [2, 3], bytes(24)), "model.a.steps": ("I64", [], bytes(8)),
           "rank1.mean": ("BF16", [3], bytes(6)), "flags": ("BOOL", [2], b"\0\1"), "empty": ("F32", [0, 4], b"")}
META = {"format": "pt", "fnet.format_version": "1", "fnet.version": "0.1.0", "fnet.config": "[train]\nepochs = 3\n",
        "fnet.meta": json.dumps({"config": "", "classes": ["cat"], "progress": {"step": 5, "epoch": 1, "step_in_epoch": 2},
                                 "world_size": 2, "seed": 7,
                                 "best": {"metric": "bbox_mAP", "value": 0.3, "epoch": 1}, "state": {"loss_scale": 65536.0}}),
        "fnet.tensors": json.dumps([{"name": name, "crc32c": 1} for name in TENSORS]), "fnet.checksum": "00000000"}
write("checkpoints", "fnet", safetensors(TENSORS, META))
write("checkpoints", "plain", safetensors(TENSORS))
write("checkpoints", "cut_off", safetensors(TENSORS, META)[:-9])
write("weights", "safetensors", safetensors({"backbone.a": TENSORS["model.a.weight"]}))

STATE = collections.OrderedDict(a=torch.arange(6.0).reshape(2, 3), b=torch.tensor(3), c=torch.arange(8.0).half()[2:6:2])
OPTIMIZER = {"state": {0: {"step": 3, "exp_avg": torch.ones(2, 3), "exp_avg_sq": torch.ones(2, 3)}},
             "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999), "params": [0]}]}
FILES = {"bare": STATE, "model": {"model": STATE},
         "mmdet": {"meta": {"epoch": 1, "iter": 9, "CLASSES": ("cat", "dog")}, "state_dict": STATE, "optimizer": OPTIMIZER}}
for name, content in FILES.items():
    for suffix, as_zip in [("zip", True), ("legacy", False)]:
        path = FOLDER / "weights" / f"{name}_{suffix}"
        torch.save(content, path, _use_new_zipfile_serialization=as_zip)
        if as_zip:
            # The pickle alone, which the target puts into an archive of its own.
            with zipfile.ZipFile(path) as archive:
                inner = next(entry for entry in archive.namelist() if entry.endswith("data.pkl"))
                write("weights", f"{name}_pickle", archive.read(inner))
write("weights", "values", pickle.dumps({"a": [1, 2.5, "x", None, True, (1,), {2}], 3: b"bytes"}, protocol=2))

PIXELS = Image.new("RGB", (12, 9))
PIXELS.putdata([(i * 2, 255 - i, i * 7 % 256) for i in range(108)])
KINDS = {"jpeg": ("RGB", "JPEG", {}), "progressive": ("RGB", "JPEG", {"progressive": True}), "cmyk": ("CMYK", "JPEG", {}),
         "png": ("RGBA", "PNG", {}), "palette_png": ("P", "PNG", {}), "gif": ("P", "GIF", {}), "bmp": ("RGB", "BMP", {}),
         "webp": ("RGB", "WEBP", {}), "lossless_webp": ("RGBA", "WEBP", {"lossless": True}), "ppm": ("RGB", "PPM", {}),
         "pgm": ("L", "PPM", {}), "jp2": ("RGB", "JPEG2000", {}), "gray_jp2": ("L", "JPEG2000", {"irreversible": True}),
         "tiff": ("RGB", "TIFF", {}), "palette_tiff": ("P", "TIFF", {"compression": "tiff_lzw"}),
         "lab_tiff": ("LAB", "TIFF", {}), "ycbcr_tiff": ("YCbCr", "TIFF", {"compression": "tiff_adobe_deflate"}),
         "jpeg_tiff": ("YCbCr", "TIFF", {"compression": "jpeg"}), "fax_tiff": ("1", "TIFF", {"compression": "group3"}),
         "fax4_tiff": ("1", "TIFF", {"compression": "group4"}), "runs_tiff": ("1", "TIFF", {"compression": "tiff_ccitt"})}
for name, (mode, kind, options) in KINDS.items():
    content = io.BytesIO()
    (Image.new("LAB", (12, 9), (128, 9, 240)) if mode == "LAB" else PIXELS.convert(mode)).save(content, kind, **options)
    write("images", name, content.getvalue())


def tiff(chunks, tags, big=True):
    """A BigTIFF of 12x9 pixels; tags are (number, type, values)."""
    data, places = b"", []
    for chunk in chunks:
        places.append(16 + len(data))
        data += chunk
    tiled = any(tag[0] == 322 for tag in tags)
    tags = sorted([(256, 4, [12]), (257, 4, [9]), (258, 3, [8]), (324 if tiled else 273, 16, places),
                   (325 if tiled else 279, 16, [len(chunk) for chunk in chunks])] + tags)
    entries = b""
    for number, kind, values in tags:
        content = b"".join(struct.pack("<" + {3: "H", 4: "I", 16: "Q"}[kind], value) for value in values)
        if len(content) > 8:
            content, data = struct.pack("<Q", 16 + len(data)), data + content
        entries += struct.pack("<HHQ", number, kind, len(values)) + content.ljust(8, b"\0")
    return struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16 + len(data)) + data + struct.pack("<Q", len(tags)) + entries + bytes(8)


PLANES = [(262, 3, [2]), (277, 3, [3]), (284, 3, [2]), (322, 4, [16]), (323, 4, [16])]
write("images", "tiled_planes", tiff([bytes(range(256))] * 3, PLANES))
write("images", "reversed_bits", tiff([bytes(range(108))], [(262, 3, [1]), (266, 3, [2])]))
write("images", "shared_chroma", tiff([bytes(range(180))], [(262, 3, [6]), (277, 3, [3]), (530, 3, [2, 2])]))
