"""Lists, as C++, the operators that have a kernel in the wheel's libtorch_cuda, which loads without a driver, and those whose
CUDA wrapper does not compare the devices of its arguments."""

import re
import sys
from pathlib import Path

import torch

yaml = Path(torch.__file__).parent.parent / "torchgen/packaged/ATen/native/native_functions.yaml"
unchecked = set()
for entry in re.split(r"\n(?=- func:)", yaml.read_text()):
    name = re.match(r"- func: ([\w.]+)\(", entry)
    if name and re.search(r"^\s+device_check:\s*NoCheck", entry, re.M):
        unchecked.add("aten::" + name.group(1))
names = sorted(torch._C._dispatch_get_registrations_for_dispatch_key("CUDA"))
assert len(names) > 1000, f"libtorch_cuda registers {len(names)} operators"
rows = [f'    {{"{name}", {str(name in unchecked).lower()}}},' for name in names if name.startswith("aten::")]
Path(sys.argv[1]).write_text("\n".join(rows) + "\n")
