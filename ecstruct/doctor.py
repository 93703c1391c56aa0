"""Checks of an installation, and of a model in it: versions, devices, memory, extras, the hub, and whether
a model computes what its checkpoint does.

A `Finding` is "ok", a "warning" (something is missing that may not be needed, or is worth knowing) or a
"problem" (numbers cannot be trusted, or nothing runs).
"""

import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import huggingface_hub
import psutil
import torch
from huggingface_hub import constants
from jaxtyping import Float
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from torch import Tensor

from ecstruct.errors import InputError
from ecstruct.facts.tokens import Batch
from ecstruct.models.classifiers import auto_class, hookable
from ecstruct.models.delta import base_of, is_delta
from ecstruct.models.hooked import HookedView
from ecstruct.models.loading import load
from ecstruct.models.quantised import ask_to_dequantise, dequantised
from ecstruct.models.sources import located, read_config
from ecstruct.scores.walk import Walk

State = Literal["ok", "warning", "problem"]

_TOLERANCES = {"ok": 1e-5, "warning": 1e-3}
"""The largest differences in float32, relative to the largest value, by state."""
_GIB = 2**30
_LITTLE = {"memory": 2 * _GIB, "disk": 5 * _GIB}
_SECONDS = 5.0
"""The timeout for the hub's answer."""
_LENGTHS = (12, 7)
"""The numbers of tokens of the two trial prompts; the second is padded."""


@dataclass(frozen=True)
class Finding:
    """The result of one check."""

    section: str
    name: str
    state: State
    text: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


def examine(source: str = "organism", device: str | None = None) -> list[Finding]:
    """Run all checks, with a model given by its source, as for `ecstruct.load`.

    Raises:
        InputError: the model cannot be loaded, or the device does not exist.
    """
    return [*versions(), *devices(), *memory(), *extras(), hub(), *model(source, device)]


def versions() -> Iterator[Finding]:
    """Compare Python and the packages that ecstruct needs with the versions in its metadata."""
    yield Finding("versions", "ecstruct", "ok", version("ecstruct"))
    asked = SpecifierSet(metadata("ecstruct")["Requires-Python"])
    yield _versioned("python", ".".join(map(str, sys.version_info[:3])), asked)
    for needed in map(Requirement, requires("ecstruct") or ()):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            yield _versioned(needed.name, _installed_version(needed.name), needed.specifier)


def _installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _versioned(name: str, found: str | None, asked: SpecifierSet) -> Finding:
    if found is None:
        return Finding("versions", name, "problem", f"not installed, but {asked or 'any'} is needed")
    if not asked.contains(found, prereleases=True):
        return Finding("versions", name, "problem", f"{found}, but {asked} is needed")
    return Finding("versions", name, "ok", found)


def devices() -> Iterator[Finding]:
    """List the devices that models can use: the CPU, and any GPUs."""
    threads = torch.get_num_threads()
    yield Finding("devices", "cpu", "ok", f"{threads} of {os.cpu_count()} threads")
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        bf16 = "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bfloat16"
        text = f"{torch.cuda.get_device_name(index)}, {_size(free)} of {_size(total)} free, {bf16}"
        yield Finding("devices", f"cuda:{index}", _enough(free, "memory"), text)
    if torch.backends.mps.is_available():
        yield Finding("devices", "mps", "ok", "is used with --device mps only")


def memory() -> Iterator[Finding]:
    """Check free main memory, and free space on the disks of this folder and of the hub's cache."""
    main = psutil.virtual_memory()
    text = f"{_size(main.available)} of {_size(main.total)} free"
    yield Finding("memory", "main", _enough(main.available, "memory"), text)
    for name, wanted in (("disk", Path.cwd()), ("disk of the hub's cache", Path(constants.HF_HUB_CACHE))):
        there = next(path for path in (wanted, *wanted.absolute().parents) if path.exists())
        disk = shutil.disk_usage(there)
        text = f"{_size(disk.free)} of {_size(disk.total)} free at {there}"
        yield Finding("memory", name, _enough(disk.free, "disk"), text)


def _enough(free: int, of: str) -> State:
    return "ok" if free >= _LITTLE[of] else "warning"


def _size(n_bytes: float) -> str:
    return f"{n_bytes / _GIB:.1f} GiB"


def extras() -> Iterator[Finding]:
    """Check optional dependencies: figures, GGUF files, Slurm."""
    if find_spec("kaleido") is None or find_spec("choreographer") is None:  # kaleido 1 brings it
        text = "no kaleido 1 for PNG, SVG and PDF: pip install kaleido"
        yield Finding("extras", "figures", "warning", text)
    elif (browser := _browser()) is None:
        text = "no Chrome for PNG, SVG and PDF: install one, or run plotly_get_chrome"
        yield Finding("extras", "figures", "warning", text)
    else:
        yield Finding("extras", "figures", "ok", f"kaleido {version('kaleido')} with {browser}")
    if (gguf := _installed_version("gguf")) is None:
        text = "not installed, for GGUF files and smollm2: pip install 'ecstruct[gguf]'"
        yield Finding("extras", "gguf", "warning", text)
    else:
        yield Finding("extras", "gguf", "ok", gguf)
    batch = shutil.which("sbatch")
    text = f"submitit {version('submitit')} with {batch or 'no sbatch: sweeps run on this machine'}"
    yield Finding("extras", "slurm", "ok", text)


def _browser() -> str | None:
    from choreographer.browsers.chromium import Chromium  # of kaleido

    return Chromium.find_browser(skip_local=False)


def hub() -> Finding:
    """Check whether models can be fetched from the hub."""
    login = "logged in" if huggingface_hub.get_token() else "not logged in, which gated models need"
    if constants.HF_HUB_OFFLINE:
        text = f"offline, as HF_HUB_OFFLINE says: only models in the cache can be loaded; {login}"
        return Finding("hub", constants.ENDPOINT, "warning", text)
    try:
        answer = huggingface_hub.get_session().head(constants.ENDPOINT, timeout=_SECONDS)
    except Exception as error:  # whatever the library asks with
        text = f"cannot be reached ({type(error).__name__}): only local models can be loaded; {login}"
        return Finding("hub", constants.ENDPOINT, "warning", text)
    if answer.status_code >= 400:
        text = f"answers with {answer.status_code}: only local models can be loaded; {login}"
        return Finding("hub", constants.ENDPOINT, "warning", text)
    return Finding("hub", constants.ENDPOINT, "ok", f"can be reached; {login}")


def model(source: str, device: str | None = None) -> Iterator[Finding]:
    """Check that a model, hooked and walked block by block, computes the same in float32 as transformers
    with its checkpoint, on two prompts of random tokens, one of them padded.

    Raises:
        InputError: the model cannot be loaded.
    """
    if is_delta(source):
        raise InputError(f"{source} is a weight delta: check the model that it changes, {base_of(source)}.")
    hooked = load(source, device=device)
    view = HookedView(hooked)
    shape = f"{view.n_layers} layers of {view.n_heads} heads, d_model {hooked.cfg.d_model}"
    n = sum(p.numel() for p in {id(p): p for p in view.named_weights.values()}.values())
    yield Finding(source, "loaded", "ok", f"{type(view.hf).__name__}, {shape}, {n:,} weights")
    batch = _batch(view)
    own = _logits(hooked, batch)
    seconds = time.perf_counter()
    _logits(hooked, batch).cpu()  # `cpu` waits for a GPU
    seconds = time.perf_counter() - seconds
    walk = Walk(view, view.weights(), [batch], keep_graphs=False)
    walk.up()
    with torch.no_grad():
        walked = view.head(walk.weights, walk.resid(view.n_layers, 0)).output
    yield _logits_finding(source, "walk", walked, own, batch, "the hooked model's own forward")
    del view, hooked, walk  # before the other one takes its memory
    plain = _logits(_plain(source, batch.ids.device), batch)
    yield _logits_finding(source, "parity", own, plain, batch, "the Hugging Face model, loaded apart")
    yield Finding(source, "forward", "ok", f"{1000 * seconds:.1f} ms for {batch.ids.numel()} tokens")


def _batch(view: HookedView) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor(_LENGTHS).clamp(max=view.model.cfg.n_ctx)
    ids = torch.randint(view.model.cfg.d_vocab, (len(lengths), int(lengths.max())), generator=generator)
    none = torch.zeros((len(lengths), 1), dtype=torch.long, device=view.device)
    return Batch(ids.to(view.device), lengths.to(view.device), none, none)


@torch.no_grad()
def _logits(model: Any, batch: Batch) -> Tensor:
    found = model(batch.ids, attention_mask=batch.mask, use_cache=False)
    return found if isinstance(found, Tensor) else found.logits


def _plain(source: str, device: torch.device) -> Any:
    """Load the checkpoint with transformers alone, without any part of ecstruct."""
    at = located(source)
    config = read_config(at)
    ask_to_dequantise(at.name, config)
    plain: Any = auto_class(config).from_pretrained(
        at.where,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        attn_implementation="eager",
        **at.options,
    )
    return hookable(dequantised(plain).to(device).eval())


def _logits_finding(
    source: str,
    name: str,
    ours: Float[Tensor, "batch pos d_vocab"],
    theirs: Float[Tensor, "batch pos d_vocab"],
    batch: Batch,
    reference: str,
) -> Finding:
    """Compare logits at real tokens; the error is the largest difference over the largest of `theirs`.
    `reference` says in words what made `theirs`."""
    real = batch.mask.bool()
    ours, theirs = ours[real].float(), theirs[real].float()
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    state: State = "problem"  # of NaN, too
    for better in ("warning", "ok"):
        if error <= _TOLERANCES[better]:
            state = better
    exact = "the logits are those of" if error == 0 else f"the logits differ by {error:.1e} (relative) from"
    return Finding(source, name, state, f"{exact} {reference}")
