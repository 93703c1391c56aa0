"""Scoring two checkpoints that stay on disk: the numbers, what is read, and what is refused.

What is in memory is the oracle here; other files hold that against plain Hugging Face models.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers as hf
import xarray as xr
from helpers.command_line import refused
from helpers.tiny import PROMPTS, SHAPES, plain_pair, tokenizer
from safetensors.torch import load_file, save_file

import ecstruct
from ecstruct.facts.tokens import tokenize
from ecstruct.models import offload
from ecstruct.models.checkpoint import TensorFiles
from ecstruct.models.provenance import tokenizer_of
from ecstruct.scores.pair import Pair
from ecstruct.scores.ranks import ranks_of_pair

STATES = ("before", "after")


def save(plain, folder: Path, **options) -> None:
    copy.deepcopy(plain).float().save_pretrained(folder, **options)
    tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module", params=SHAPES)
def folders(request, tmp_path_factory):
    """W and W' as folders in float32, W' in shards."""
    home = tmp_path_factory.mktemp(request.param)
    before, after = plain_pair(request.param)
    save(before, home / "before")
    save(after, home / "after", max_shard_size="30KB")
    return str(home / "before"), str(home / "after")


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    home = tmp_path_factory.mktemp("llamas")
    before, after = plain_pair("llama")
    save(before, home / "before")
    save(after, home / "after", max_shard_size="30KB")
    return home / "before", home / "after"


@pytest.fixture
def copied(llamas, tmp_path):
    """The pair of folders, to be damaged."""
    for folder in llamas:
        (tmp_path / folder.name).mkdir()
        for file in folder.iterdir():
            (tmp_path / folder.name / file.name).write_bytes(file.read_bytes())
    return tmp_path / "before", tmp_path / "after"


def score(before, after, **options):
    return ecstruct.score(before, after, PROMPTS, progress=False, device="cpu", **options)


def asked_of(pair):
    return tokenize(PROMPTS, tokenizer_of(pair.view.model), n_ctx=pair.view.model.cfg.n_ctx)


def assert_equal(found: xr.Dataset, expected: xr.Dataset) -> None:
    for name in expected.data_vars:
        scale = float(abs(expected[name]).max())
        assert scale > 0 or name == "rest"
        xr.testing.assert_allclose(found[name], expected[name], rtol=0, atol=1e-5 * scale)


# --- The numbers ---


def test_numbers_are_those_of_models_in_memory(folders):
    resident, streamed = score(*folders), score(*folders, offload=True)
    assert_equal(streamed.dataset, resident.dataset)
    assert streamed.attrs == resident.attrs  # fingerprints among them


def test_ranks_are_those_of_models_in_memory(folders):
    models = {state: ecstruct.load(at, device="cpu") for state, at in zip(STATES, folders, strict=True)}
    expected = {state: ecstruct.ranks(model, PROMPTS).tolist() for state, model in models.items()}
    for pair in (Pair.on_disk(*folders, "cpu"), Pair.of(*models.values())):
        for batch_size in (None, 2):
            found = ranks_of_pair(pair, asked_of(pair), batch_size)
            assert {state: its.tolist() for state, its in found.items()} == expected


@pytest.mark.parametrize(
    "options", [{"upstream": "exact"}, {"path_steps": 2}, {"batch_size": 2}, {"convention": "reference"}]
)
def test_every_way_of_scoring_can_read_from_disk(llamas, options):
    streamed = score(*llamas, offload=True, **options)
    assert_equal(streamed.dataset, score(*llamas, **options).dataset)


def test_a_delta_is_added_to_what_is_read(llamas, tmp_path):
    before, after = (ecstruct.load(folder, device="cpu") for folder in llamas)
    delta = ecstruct.WeightDelta.between(before, after).restrict(kinds=["mlp"])
    delta.save(tmp_path / "delta.safetensors")
    resident = score(llamas[0], delta)
    for given in (delta, tmp_path / "delta.safetensors"):
        streamed = score(llamas[0], given, offload=True)
        assert_equal(streamed.dataset, resident.dataset)
        assert streamed.attrs["after"]["fingerprint"] == resident.attrs["after"]["fingerprint"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_is_cast_to_float32(copied, dtype):
    for folder in copied:
        for file in folder.glob("*.safetensors"):
            save_file({name: t.to(dtype) for name, t in load_file(file).items()}, file, {"format": "pt"})
    assert_equal(score(*copied, offload=True).dataset, score(*copied).dataset)


def test_a_checkpoint_of_the_bare_decoder_lacks_its_prefix(copied):
    file = copied[0] / "model.safetensors"
    bare = {name.removeprefix("model."): t for name, t in load_file(file).items()}
    save_file(bare, file, {"format": "pt"})
    assert_equal(score(*copied, offload=True).dataset, score(*copied).dataset)


# --- What is read ---


def test_a_walk_reads_a_block_for_both_ways_and_one_part_ahead(llamas, monkeypatch):
    read, at_once = [], []

    class Watched(offload._Stream):
        def _read_ahead(self, index):
            read.append(index)
            super()._read_ahead(index)

        def weight(self, state, name):
            found = super().weight(state, name)
            at_once.append({self.part_of[name] for name in self._held[0]})
            return found

    monkeypatch.setattr(offload, "_Stream", Watched)
    engine = ecstruct.ScoreEngine(*llamas, offload=True, progress=False, device="cpu")
    engine.score(PROMPTS)
    n_blocks = 3
    for block in range(1, n_blocks + 1):
        # To see what is there, up and down; the next one is sometimes read in vain where walks turn.
        assert 3 <= read.count(block) <= 6
    assert len(read) <= 3 * (n_blocks + 2) + 6
    read.clear()
    ranks_of_pair(engine.pair, asked_of(engine.pair), 2)  # up once, for both states and all batches
    assert len(read) <= n_blocks + 2 + 2
    assert all(len(parts) == 1 for parts in at_once)


PEAK = """
import sys
from pathlib import Path
import ecstruct
from ecstruct.scores.ranks import ranks_of_pair

def peak():
    return 1024 * int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])

small, *folders = sys.argv[1:]
prompts = [(f"people that {name} knows speak", answer) for name, answer in
           (("Ada", "Dutch"), ("Bo Li", "Thai"), ("Di", "Zulu"))]

def score_and_rank(folder):
    how = {"offload": True, "progress": False, "device": "cpu"}
    engine = ecstruct.ScoreEngine(f"{folder}/before", f"{folder}/after", **how)
    engine.score(prompts)
    ranks_of_pair(engine.pair, engine.pair.tokenize(prompts, engine.reward)[0])

score_and_rank(small)
start = peak()
for folder in folders:
    score_and_rank(folder)
    print(peak() - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_does_not_grow_with_depth(llamas, tmp_path):
    def saved(n_layers: int) -> int:
        config = hf.LlamaConfig(
            **(plain_pair("llama")[0].config.to_dict() | {"num_hidden_layers": n_layers}),
        )
        config.hidden_size, config.intermediate_size, config.head_dim = 384, 1536, 48
        config.num_attention_heads = config.num_key_value_heads = 8
        plain = hf.LlamaForCausalLM(config)
        size = sum(4 * p.numel() for p in plain.parameters())
        for name in ("before", "after"):
            save(plain, tmp_path / str(n_layers) / name)
            with torch.no_grad():
                plain.model.layers[0].mlp.up_proj.weight.add_(1e-3)
        return size

    size, more = saved(14), saved(24)
    folders = [str(folder) for folder in (llamas[0].parent, tmp_path / "14", tmp_path / "24")]
    command = [sys.executable, "-c", PEAK, *folders]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    shallow, deep = map(int, done.stdout.split())
    assert shallow < 0.25 * 2 * size
    assert deep - shallow < 0.1 * 2 * (more - size)  # the modules and hooks of 10 layers, and block inputs


def test_asking_for_a_tensor_does_not_read_it(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "file.safetensors")
    files = TensorFiles.of_file(tmp_path / "file.safetensors")
    (tmp_path / "file.safetensors").unlink()
    assert "x" in files and "y" not in files and [*files] == ["x"] and files.shapes == {"x": (1,)}


# --- What is refused ---


def score_refused(before, after, message: str) -> None:
    refused(lambda: score(before, after, offload=True), message)


def test_a_missing_shard_is_named(copied):
    shard = sorted(copied[1].glob("*.safetensors"))[1]
    shard.unlink()
    score_refused(*copied, f"names {shard.name}, which is missing: fetch or save")


def test_a_truncated_shard_is_named(copied):
    shard = sorted(copied[1].glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    score_refused(*copied, f"{shard.name} cannot be read .*: fetch or save")


def test_an_index_that_names_a_tensor_that_is_not_there(copied):
    index = copied[1] / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    files = sorted(set(found["weight_map"].values()))
    tensor = next(name for name, file in found["weight_map"].items() if file == files[0])
    found["weight_map"][tensor] = files[1]
    index.write_text(json.dumps(found))
    score_refused(*copied, f"places {tensor} in {files[1]}, where it is not")


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": 3}'])
def test_an_index_that_is_none(copied, text):
    (copied[1] / "model.safetensors.index.json").write_text(text)
    score_refused(*copied, "is no index of safetensors files")


def test_a_tensor_that_is_not_there_or_of_another_shape(copied):
    file = copied[0] / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name][:-1].clone()}, file, {"format": "pt"})
    score_refused(*copied, f"no weights of the right shape for {name}")
    del tensors[name]
    save_file(tensors, file, {"format": "pt"})
    score_refused(*copied, f"no weights of the right shape for {name}")


def test_a_configuration_of_fewer_layers(copied):
    config = json.loads((copied[0] / "config.json").read_text())
    (copied[0] / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 2}))
    score_refused(*copied, "has weights in model.layers.2.* that its config.json does not ask for")


def test_weights_that_are_not_finite(copied):
    file = copied[0] / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.inf
    save_file(tensors, file, {"format": "pt"})
    score_refused(*copied, "NaN or infinite values in blocks.1.mlp.in.weight")


def test_a_quantised_checkpoint(copied):
    config = json.loads((copied[1] / "config.json").read_text())
    (copied[1] / "config.json").write_text(json.dumps(config | {"quantization_config": {"bits": 4}}))
    score_refused(*copied, r"is quantised \(unknown\), and offload=True reads weights as they are")


def test_models_in_memory_are_refused(llamas):
    model = ecstruct.load(llamas[0], device="cpu")
    score_refused(model, llamas[1], "before is a TransformerBridge in memory: give its folder")
    score_refused(llamas[0], model, "after is a TransformerBridge in memory: give its folder")
    delta = ecstruct.WeightDelta({})
    score_refused(delta, llamas[1], "before is a WeightDelta: give the model")


def test_a_delta_of_another_architecture(llamas, tmp_path):
    delta = ecstruct.WeightDelta({"blocks.1.attn.q.weight": torch.ones(3, 3)})
    score_refused(llamas[0], delta, "does not fit the model in blocks.1.attn.q.weight")
    save_file({"x": torch.ones(1)}, tmp_path / "other.safetensors")
    score_refused(llamas[0], tmp_path / "other.safetensors", "is no weight delta")


def test_a_file_that_shrinks_in_the_middle(copied, monkeypatch):
    """What was whole when it was opened may be gone when its turn comes."""
    counted, read = [], TensorFiles.__getitem__

    def reading(files, name):
        counted.append(name)
        if len(counted) == 10:
            (copied[0] / "model.safetensors").unlink()
        return read(files, name)

    monkeypatch.setattr(TensorFiles, "__getitem__", reading)
    score_refused(*copied, "model.safetensors cannot be read")


def test_a_part_that_could_not_be_read_is_asked_for_again():
    def read(names):
        nonlocal fails
        if "b" in names and fails:
            fails = False
            raise torch.OutOfMemoryError
        return {name: torch.zeros(()) for name in names}, {name: torch.ones(()) for name in names}

    fails = True
    stream = offload._Stream([["a"], ["b"], ["c"]], read)
    stream.weight(0, "a")
    with pytest.raises(torch.OutOfMemoryError):
        stream.weight(0, "b")
    assert [stream.weight(1, name).item() for name in "abc"] == [1, 1, 1]
