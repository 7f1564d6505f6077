"""Write the kernels in the layout of Hugging Face's `kernels`, for `kernel-builder` and for `get_local_kernel`.

    cd kernels && python -m tools.hub_layout OUT [--backend cuda]

OUT gets the source layout (`build.toml`, `flake.nix`, `CARD.md`, `torch-ext/rolesafe_kernels/`) and one build of it,
`build/torch-BACKEND/`, which `kernels.get_local_kernel(OUT)` loads. A hub kernel is imported under a name of its own,
next to other versions: imports become relative, and operations are registered under the kernel's id instead of
`rolesafe`. All else is copied as it is, so there is one source. In the repository imports stay absolute: they belong to
the fingerprint of the compiled kernels in `compiled.json`.

Format: "Kernel requirements" and "Write kernels" in the documentation of `kernels`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
from base64 import b64encode
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

PACKAGE = "rolesafe_kernels"
NAME = "rolesafe-kernels"
VERSION = 0
"""Version of the hub kernel; 0 by convention for kernels whose interface may change."""
BACKENDS = ("cuda", "cpu")
"""CUDA, and the CPU for Triton's interpreter."""
SOURCE = Path(__file__).parents[1] / PACKAGE
LICENSE = "Apache-2.0"

_IMPORT = re.compile(rf"^(\s*from ){PACKAGE}(?:\.([\w.]+))? import ", re.M)
_ABSOLUTE = re.compile(rf"^\s*(?:from|import) {PACKAGE}\b", re.M)
_OPERATION = re.compile(r'"rolesafe::(\w+)"')
_FUTURE = "from __future__ import annotations\n"

BUILD = f"""[general]
name = "{NAME}"
version = {VERSION}
edition = 5
license = "{LICENSE}"
backends = ["cuda"]

[torch-noarch]
"""

FLAKE = """{
  inputs.kernel-builder.url = "github:huggingface/kernels";
  outputs =
    { self, kernel-builder, ... }:
    kernel-builder.lib.genKernelFlakeOutputs {
      inherit self;
      path = ./.;
    };
}
"""

CARD = f"""---
library_name: kernels
license: {LICENSE.lower()}
---

Role-aware attention as Triton kernels: forward, backward and decode, of the library rolesafe.

    from kernels import get_kernel

    kernel = get_kernel(REPO_ID, version={VERSION}, trust_remote_code=True)
    out = kernel.role_attention(q, k, v, q_roles, k_roles, bias=bias)
"""

OPS = """import torch

_OPS_NAME = "{id}"

ops = getattr(torch.ops, _OPS_NAME)


def add_op_namespace_prefix(op_name: str) -> str:
    return f"{{_OPS_NAME}}::{{op_name}}"
"""


def hub_source(path: Path) -> str:
    """Return the code of a file of the package with relative imports and prefixed operations.

    Raises:
        ValueError: It imports the package in a form that is not rewritten.
    """
    code = path.read_text(encoding="utf-8")
    dots = "." * len(path.relative_to(SOURCE).parts)
    code = _IMPORT.sub(lambda found: f"{found[1]}{dots}{found[2] or ''} import ", code)
    if found := _ABSOLUTE.search(code):
        raise ValueError(f"`path`: expected imports `from {PACKAGE}.MODULE import NAME` in {path}, got {found[0]!r}")
    code, operations = _OPERATION.subn(r'add_op_namespace_prefix("\1")', code)
    if not operations:
        return code
    if code.count(_FUTURE) != 1:
        raise ValueError(f"`path`: expected one line {_FUTURE!r} in {path}, after which imports begin")
    return code.replace(_FUTURE, f"{_FUTURE}\nfrom {dots}_ops import add_op_namespace_prefix\n")


def hub_files() -> dict[str, bytes]:
    """Return the files of the hub kernel by their path in it, without `_ops.py`, which a build adds."""
    files = {}
    for path in sorted(SOURCE.rglob("*")):
        name = path.relative_to(SOURCE).as_posix()
        if path.suffix == ".py":
            files[name] = hub_source(path).encode()
        elif path.suffix in (".json", ".typed"):
            files[name] = path.read_bytes()
    return files


def kernel_id(files: Mapping[str, bytes], backend: str) -> str:
    """Return the module name of a build: another one for any other content or backend."""
    total = sha256()
    for name, content in sorted(files.items()):
        total.update(name.encode() + b"\0" + content + b"\0")
    return f"_{PACKAGE}_{backend}_{total.hexdigest()[:7]}"


def metadata(files: Mapping[str, bytes], backend: str, name: str) -> dict[str, object]:
    """Return the content of the `metadata.json` of a build, with the digests of its `files`."""
    archs = {"archs": ["8.0", "8.6", "9.0", "10.0", "12.0"]} if backend == "cuda" else {}
    return {
        "name": NAME,
        "id": name,
        "version": VERSION,
        "license": LICENSE,
        "python-depends": [],
        "backend": {"type": backend, **archs},
        "digest": {
            "algorithm": "sha256",
            "files": {path: b64encode(sha256(content).digest()).decode() for path, content in sorted(files.items())},
        },
    }


def write(out: Path, backend: str = "cuda") -> None:
    """Write the layout into `out`, in place of an earlier one.

    Raises:
        ValueError: `out` holds something else.
    """
    if out.exists() and any(out.iterdir()) and not (out / "build.toml").is_file():
        raise ValueError(f"`out`: expected an empty folder or an earlier layout, {str(out)!r} holds other files")
    source, build = out / "torch-ext" / PACKAGE, out / "build" / f"torch-{backend}"
    for folder in (source, build):
        shutil.rmtree(folder, ignore_errors=True)
    files = hub_files()
    name = kernel_id(files, backend)
    built = {**files, "_ops.py": OPS.format(id=name).encode()}
    about = json.dumps(metadata(built, backend, name), indent=2) + "\n"
    texts = {"build.toml": BUILD, "flake.nix": FLAKE, "CARD.md": CARD}
    whole = {out / path: text.encode() for path, text in texts.items()}
    whole |= {source / path: content for path, content in files.items()}
    whole |= {build / path: content for path, content in built.items()}
    whole[build / "metadata.json"] = about.encode()
    for path, content in whole.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def main() -> None:
    """Write the layout."""
    parser = argparse.ArgumentParser(description="Write the kernels in the layout of Hugging Face's `kernels`.")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--backend", choices=BACKENDS, default="cuda", help="cpu: for Triton's interpreter")
    args = parser.parse_args()
    write(args.out, args.backend)


if __name__ == "__main__":
    main()
