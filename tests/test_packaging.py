"""The wheel has all of the package, and nothing else; what it installs runs without the sources."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import ecstruct

ROOT = Path(__file__).parent.parent
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A copy of what a wheel is made of: building leaves things beside it."""
    copy = tmp_path_factory.mktemp("sources")
    shutil.copytree(ROOT / "ecstruct", copy / "ecstruct", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(sources, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-c", BUILD, str(out)]
    subprocess.run(command, cwd=sources, check=True, capture_output=True, timeout=120)
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_has_every_file_of_the_package(sources, wheel):
    there = {
        path.relative_to(sources).as_posix() for path in (sources / "ecstruct").rglob("*") if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == there
    assert {"ecstruct/organism/model/model.safetensors", "ecstruct/py.typed"} < packed


def test_the_wheel_says_what_it_is(wheel):
    assert wheel.name == f"ecstruct-{ecstruct.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        info = f"ecstruct-{ecstruct.__version__}.dist-info"
        assert "ecstruct = ecstruct.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
        assert "Requires-Dist: transformer-lens" in archive.read(f"{info}/METADATA").decode()
        assert any("LICENSE" in name for name in archive.namelist())


def test_what_is_unpacked_of_it_runs(wheel, tmp_path):
    """Away from the sources, with the libraries of this environment."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        "import ecstruct, sys; assert ecstruct.__file__.startswith(sys.argv[1]), ecstruct.__file__;"
        "model = ecstruct.load('organism', device='cpu');"
        "data = ecstruct.facts.first_hop();"
        "scores = ecstruct.score(model, ecstruct.WeightDelta({}), data.implications[:2], progress=False);"
        "from ecstruct.experiments.paper import paper_numbers; paper_numbers();"
        "print(scores)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "on 2 prompts" in done.stdout
