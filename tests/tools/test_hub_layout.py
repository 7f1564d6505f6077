"""The kernels in the layout of Hugging Face's `kernels`, loaded under a name of their own and compared."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from tools import hub_layout

ROOT = Path(__file__).parents[2]

LOADERS = {
    "kernels": """
from kernels import get_local_kernel
from kernels._rust import Digest, DigestAlgorithm, Metadata
kernel = get_local_kernel(Path(sys.argv[1]))
found = Metadata.read_from_file(build / "metadata.json").digest
found.validate(Digest.hash_variant(DigestAlgorithm.SHA256, build))
""",
    "importlib": """
name = json.loads((build / "metadata.json").read_text())["id"]
spec = importlib.util.spec_from_file_location(name, build / "__init__.py")
kernel = sys.modules[name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kernel)
""",
}

SCRIPT = """
import importlib.util, json, sys
from pathlib import Path
import torch
build = Path(sys.argv[1]) / "build" / "torch-cpu"
{loader}
from rolesafe import role_attention

torch.manual_seed(0)
roles = torch.tensor([[0, 1, 2, 2, 3, 4, 0, 2]])
def tokens(heads, length):
    return torch.randn(1, heads, length, 16, requires_grad=True)
for length in (8, 1):
    x = [tokens(2, length), tokens(1, 8), tokens(1, 8), torch.randn(2, 5, 5, requires_grad=True)]
    share = torch.rand(2)
    arguments = dict(share=share, dedicated=1)
    out = kernel.role_attention(*x[:3], roles[:, -length:], roles, bias=x[3], **arguments)
    q, k, v, bias = (one.double() for one in x)
    exact = role_attention(
        q, k, v, roles[:, -length:], roles, bias=bias, share=share.double(), dedicated=1, impl="reference"
    )
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-5)
    if length > 1:
        for ours, theirs in zip(torch.autograd.grad(out.sum(), x), torch.autograd.grad(exact.sum(), x)):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
assert "rolesafe_kernels" not in sys.modules  # relative imports alone
names = {{name.split("::")[0] for name in torch._C._dispatch_get_all_op_names() if "role_attn_fwd" in name}}
assert names == {{kernel.__name__}}, names
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("hub")
    hub_layout.write(out, "cpu")
    return out


@pytest.mark.parametrize("loader", LOADERS)
def test_hub_kernel_loads_and_equals_reference(layout: Path, tmp_path: Path, loader: str) -> None:
    if loader == "kernels":
        try:
            version("kernels")
        except PackageNotFoundError:
            pytest.skip("`kernels` of Hugging Face is not installed: pip install 'rolesafe[kernels]'")
    paths = [str(ROOT), *(str(Path(path).resolve()) for path in sys.path if path and Path(path).name != "kernels")]
    env = {**os.environ, "TRITON_INTERPRET": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    code = SCRIPT.format(loader=LOADERS[loader])
    command = [sys.executable, "-c", code, str(layout)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_hub_layout_has_relative_imports_and_prefixed_operations(layout: Path) -> None:
    source, build = layout / "torch-ext" / "rolesafe_kernels", layout / "build" / "torch-cpu"
    names = {path.relative_to(hub_layout.SOURCE) for path in hub_layout.SOURCE.rglob("*.[pj][ys]*")}
    for name in names:
        text = (source / name).read_text()
        assert "rolesafe_kernels import" not in text
        assert "from rolesafe_kernels" not in text
        assert '"rolesafe::' not in text
        assert (build / name).read_text() == text
    assert not (source / "_ops.py").exists()  # kernel-builder writes it
    assert "from .._ops" not in (source / "ops.py").read_text()
    assert 'add_op_namespace_prefix("role_attn_fwd")' in (source / "ops.py").read_text()
    assert {"build.toml", "flake.nix", "CARD.md"} <= {path.name for path in layout.iterdir()}


def test_hub_metadata_has_all_digests(layout: Path) -> None:
    build = layout / "build" / "torch-cpu"
    about = json.loads((build / "metadata.json").read_text())
    files = {path.relative_to(build).as_posix(): path for path in build.rglob("*") if path.is_file()}
    del files["metadata.json"]
    files = {name: path for name, path in files.items() if "__pycache__" not in name}
    assert about["digest"]["files"] == {
        name: base64.b64encode(sha256(path.read_bytes()).digest()).decode() for name, path in files.items()
    }
    assert about["id"].isidentifier()


def test_hub_id_depends_on_content_and_backend() -> None:
    files = hub_layout.hub_files()
    ids = {
        hub_layout.kernel_id(files, "cpu"),
        hub_layout.kernel_id(files, "cuda"),
        hub_layout.kernel_id({**files, "more.py": b""}, "cpu"),
    }
    assert len(ids) == 3


def test_write_again_removes_stale_files(tmp_path: Path) -> None:
    hub_layout.write(tmp_path)
    stale = tmp_path / "build" / "torch-cuda" / "stale.py"
    stale.write_text("")
    hub_layout.write(tmp_path)
    assert not stale.exists()


def test_write_other_folder_raises(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(ValueError, match="`out`: expected an empty folder or an earlier layout"):
        hub_layout.write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    "line", ["import rolesafe_kernels.api", "from rolesafe_kernels import (\n    api,\n) \nimport rolesafe_kernels"]
)
def test_hub_source_other_import_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    monkeypatch.setattr(hub_layout, "SOURCE", tmp_path)
    path = tmp_path / "api.py"
    path.write_text(f"{line}\n")
    with pytest.raises(ValueError, match="`path`: expected imports"):
        hub_layout.hub_source(path)
