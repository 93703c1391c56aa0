"""A pair of models of OLMo-7B's shape, scored from disk.

Builds a random base model in bfloat16, in shards as Hugging Face writes them, and a float32 weight delta on
its attention and MLP weights, as `WeightDelta.save` writes it; scores 20 prompts with `offload=True` in a
process of its own; then times what nobody can do without: reading both once, and one forward and one
backward pass per state (of one block, times the number of blocks, and of the head).

    python -m benchmarks.offload_7b --folder FOLDER

needs 45 GB of disk. The files stay in FOLDER and are used again.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import OlmoConfig, OlmoForCausalLM

import ecstruct
from benchmarks.memory import resident
from benchmarks.models import ids_of, make_prompts, tokenizer
from ecstruct.models.checkpoint import TensorFiles
from ecstruct.models.offload import offloaded

N_WORDS, N_PROMPTS = 50304, 20
GIGABYTES = 45


def config(n_layers: int) -> OlmoConfig:
    return OlmoConfig(
        vocab_size=N_WORDS,
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=n_layers,
        num_attention_heads=32,
        clip_qkv=8.0,
        tie_word_embeddings=False,
        architectures=["OlmoForCausalLM"],
        dtype="bfloat16",
    )


def shapes(n_layers: int) -> Iterator[tuple[int, dict[str, torch.Size]]]:
    """Shapes by name, a shard for every layer and one for what is outside."""
    with torch.device("meta"):
        plain = OlmoForCausalLM(config(n_layers))
    named = {name: p.shape for name, p in plain.named_parameters()}
    for layer in range(n_layers):
        yield layer, {n: s for n, s in named.items() if f".layers.{layer}." in n}
    yield n_layers, {n: s for n, s in named.items() if ".layers." not in n}


def build(folder: Path, n_layers: int) -> None:
    base, generator = folder / "base", torch.Generator().manual_seed(0)
    base.mkdir(parents=True)
    config(n_layers).save_pretrained(base)
    tokenizer(N_WORDS).save_pretrained(base)
    index: dict[str, str] = {}
    for shard, named in shapes(n_layers):
        file = f"model-{shard + 1:05d}-of-{n_layers + 1:05d}.safetensors"
        drawn = {n: 0.02 * torch.randn(s, generator=generator) for n, s in named.items()}
        save_file({n: t.bfloat16() for n, t in drawn.items()}, base / file, {"format": "pt"})
        index |= dict.fromkeys(named, file)
    text = json.dumps({"metadata": {}, "weight_map": index})
    (base / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    write_delta(folder / "delta.safetensors", n_layers, generator)


def write_delta(path: Path, n_layers: int, generator: torch.Generator) -> None:
    """As `WeightDelta.save` writes one, but tensor by tensor: it is larger than the memory."""
    with torch.device("meta"):
        block = OlmoForCausalLM(config(1)).model.layers[0]
    here = {"down_proj": "mlp.out", "gate_proj": "mlp.gate", "up_proj": "mlp.in"}
    here |= {f"{part}_proj": f"attn.{part}" for part in "qkvo"}
    named = {here[name.split(".")[1]]: p.shape for name, p in block.named_parameters()}
    header: dict[str, object] = {"__metadata__": {"format": "ecstruct-delta-1", "metadata": "{}"}}
    end = 0
    for layer in range(n_layers):
        for name, shape in named.items():
            start, end = end, end + 4 * shape.numel()
            header[f"blocks.{layer}.{name}.weight"] = {
                "dtype": "F32",
                "shape": list(shape),
                "data_offsets": [start, end],
            }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(n_layers):
            for shape in named.values():
                file.write(torch.randn(shape, generator=generator).mul_(6e-5).numpy().data)
    part.replace(path)


class Counted:
    """Bytes of all tensors that are read."""

    def __init__(self) -> None:
        self.bytes, read = 0, TensorFiles.__getitem__

        def counting(files: TensorFiles, name: str) -> Tensor:
            tensor = read(files, name)
            self.bytes += tensor.nbytes
            return tensor

        TensorFiles.__getitem__ = counting


def score(folder: Path) -> dict[str, float]:
    counted, imported = Counted(), resident("VmHWM")
    start = time.perf_counter()
    scores = ecstruct.score(
        folder / "base", folder / "delta.safetensors", make_prompts(N_PROMPTS), offload=True
    )
    seconds = time.perf_counter() - start
    assert scores.mlp.notnull().all() and abs(scores.mlp).max() > 0
    return {"seconds": seconds, "bytes": counted.bytes, "imported": imported, "peak": resident("VmHWM")}


def bare(folder: Path) -> dict[str, float]:
    """Reading everything once; forward and backward pass of the blocks and of the head."""
    delta = folder / "delta.safetensors"
    start = time.perf_counter()
    for files in (TensorFiles.of_folder(folder / "base"), TensorFiles.of_file(delta)):
        for name in files:
            files[name].sum()
    reading = time.perf_counter() - start
    n_layers = offloaded(folder / "base", delta).model.cfg.n_layers
    plain = OlmoForCausalLM._from_config(config(1), attn_implementation="sdpa", dtype=torch.float32)
    plain.requires_grad_(False)
    ids, _ = ids_of(make_prompts(N_PROMPTS), "cpu")

    def passes(run) -> float:
        times = []
        for _ in range(4):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        return sorted(times[1:])[1]

    embedded = plain.get_input_embeddings()(ids)
    rotary = plain.model.rotary_emb(embedded, torch.arange(ids.shape[1])[None])
    above = torch.randn_like(embedded)

    def block() -> None:
        leaf = embedded.detach().requires_grad_()
        out = plain.model.layers[0](leaf, position_embeddings=rotary)
        torch.autograd.grad(out[0] if isinstance(out, tuple) else out, leaf, above)

    def head() -> None:
        leaf = embedded[:, -1].detach().requires_grad_()
        torch.autograd.grad(plain.lm_head(plain.model.norm(leaf)).max(-1).values.sum(), leaf)

    return {"reading": reading, "passes": 2 * (n_layers * passes(block) + passes(head))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--stage", choices=("build", "score", "bare"))
    args = parser.parse_args()
    if args.stage in ("score", "bare"):
        print(json.dumps({"score": score, "bare": bare}[args.stage](args.folder)))
        return
    if not (args.folder / "delta.safetensors").exists():
        args.folder.mkdir(parents=True, exist_ok=True)
        needed, free = GIGABYTES * args.layers / 32, shutil.disk_usage(args.folder).free / 1e9
        if free < needed:
            sys.exit(
                f"{args.folder} has {free:.0f} GB free, and {needed:.0f} GB are needed: choose another."
            )
        build(args.folder, args.layers)
    if args.stage == "build":
        return
    n_parameters = sum(s.numel() for _, named in shapes(args.layers) for s in named.values())
    found = {}
    for stage in ("score", "bare"):
        command = [sys.executable, "-m", "benchmarks.offload_7b", "--folder", args.folder, "--stage", stage]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found |= json.loads(done.stdout.splitlines()[-1])
    both = 2 * 4 * n_parameters / 1e6
    print(
        f"{n_parameters / 1e9:.2f}G parameters, {args.layers} layers, {N_PROMPTS} prompts of 11 tokens, "
        f"{torch.get_num_threads()} threads\n"
        f"peak memory {found['peak'] / 1e3:.2f} GB ({found['imported'] / 1e3:.2f} GB after imports), "
        f"{found['peak'] / both:.1%} of two float32 checkpoints\n"
        f"{found['seconds']:.0f} s, {found['bytes'] / 1e9:.1f} GB read; reading both once takes "
        f"{found['reading']:.0f} s, forward and backward passes {found['passes']:.0f} s: "
        f"{found['seconds'] / (found['reading'] + found['passes']):.2f} times as long"
    )


if __name__ == "__main__":
    main()
