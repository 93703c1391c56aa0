"""GGUF files as sources: against the models that they are made of, and the package that writes them."""

import json
import shutil
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from helpers import gguf_files
from helpers.command_line import refused, run, works
from huggingface_hub.utils import _cache_assets
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

import ecstruct
from ecstruct.errors import InputError
from ecstruct.models.export import to_hugging_face
from ecstruct.models.gguf import ARCHITECTURES, dequantised
from ecstruct.models.provenance import provenance

TYPE = gguf.GGMLQuantizationType
TEXTS = ("live in 12 places", "a  12 b", "½² liv <|end|> in")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "assets"
    monkeypatch.setattr(_cache_assets, "HF_ASSETS_CACHE", str(folder))
    monkeypatch.setenv("HF_ASSETS_CACHE", str(folder))
    return folder


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_file_is_the_model_that_it_was_made_of(tmp_path, kind):
    plain = gguf_files.plain_model(kind)
    folder, weights = dequantised(gguf_files.write(tmp_path / "model.gguf", kind, plain))
    assert weights == "as a GGUF file has them"
    read = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        logits, expected = (model(gguf_files.ids()).logits for model in (read, plain))
    assert torch.allclose(logits, expected, rtol=0, atol=1e-6 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("kind", "quantised"),
    [("llama", "Q4_0"), ("gpt2", "Q4_1"), ("gemma2", "Q8_0"), ("gpt2", "F16"), ("llama", "BF16")],
)
def test_tensors_are_dequantised_as_by_the_package_that_wrote_them(tmp_path, kind, quantised):
    plain = gguf_files.plain_model(kind)
    path = gguf_files.write(tmp_path / "model.gguf", kind, plain, TYPE[quantised])
    read = to_hugging_face(ecstruct.load(path, device="cpu"))
    ours = gguf_files.tensors(kind, read)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert found.keys() == ours.keys()
    assert quantised in {tensor.tensor_type.name for tensor in found.values()}
    for name, tensor in found.items():
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(gguf_files.stored(kind, *ours[name], read), expected, strict=True)


def test_blocks_that_only_llama_cpp_writes(tmp_path):
    """Of 256 numbers, with scales of their own: any bytes are one, as long as the scales are finite."""
    plain = gguf_files.plain_model("llama", hidden_size=256)
    rng, half = np.random.default_rng(0), np.frombuffer(np.float16(1e-3).tobytes(), np.uint8)
    q4, q6 = (rng.integers(0, 256, (64, n), dtype=np.uint8) for n in (144, 210))
    q4[:, :2] = q4[:, 2:4] = q6[:, 208:] = half
    raw = {"blk.0.attn_k.weight": (q4[:32], TYPE.Q4_K), "blk.1.attn_k.weight": (q6[:32], TYPE.Q6_K)}
    path = gguf_files.write(tmp_path / "model.gguf", "llama", plain, raw=raw)
    model = ecstruct.load(path, device="cpu")
    assert provenance(model).described["weights"] == "dequantised from Q4_K, Q6_K"
    read = to_hugging_face(model)
    for name, (blocks, type_) in raw.items():
        stored = gguf_files.stored("llama", *gguf_files.tensors("llama", read)[name], read)
        np.testing.assert_array_equal(stored, gguf.dequantize(blocks, type_))


@pytest.mark.parametrize("pre", ["gpt-2", "smollm"])
def test_the_tokenizer_is_that_of_the_file(tmp_path, pre):
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.plain_model("llama"), pre=pre)
    ours = provenance(ecstruct.load(path, device="cpu")).tokenizer
    vocab = {word: i for i, word in enumerate(gguf_files.WORDS)}
    expected = Tokenizer(models.BPE(vocab, [*gguf_files.MERGES]))
    # As the tokenizer.json of GPT-2 and of SmolLM2 have it.
    words = [pre_tokenizers.ByteLevel(add_prefix_space=False)]
    if pre == "smollm":
        words.insert(0, pre_tokenizers.Digits(individual_digits=True))
    expected.pre_tokenizer, expected.decoder = pre_tokenizers.Sequence(words), decoders.ByteLevel()
    expected.add_special_tokens(["<|end|>", "<|start|>"])
    for text in TEXTS:
        assert ours(text).input_ids == expected.encode(text).ids
    assert ours.eos_token == "<|end|>" and ours.bos_token == "<|start|>"
    twelve = ours.convert_ids_to_tokens(ours("a  12").input_ids)
    assert twelve == (["a", "ĠĠ", "1", "2"] if pre == "smollm" else ["a", "Ġ", "Ġ", "12"])


def test_sources_of_a_file_and_what_is_saved_of_it(tmp_path, cache):
    folder = tmp_path / "download"
    folder.mkdir()
    plain = gguf_files.plain_model("llama")
    path = gguf_files.write(folder / "model.gguf", "llama", plain, TYPE.Q8_0)
    by_file, by_folder = (ecstruct.load(source, device="cpu") for source in (path, str(folder)))
    assert provenance(by_file).described == {
        **{"source": str(path), "revision": None, "weights": "dequantised from Q8_0"}
    }
    assert provenance(by_folder).weights == "dequantised from Q8_0"
    assert len([*(cache / "ecstruct" / "gguf" / "default").glob("*/config.json")]) == 1  # once for both
    with pytest.raises(InputError, match="a GGUF file has no revisions, and 'v2' is given"):
        ecstruct.load(path, revision="v2")
    ecstruct.save_model(by_file, tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "quantization_config" not in config and config["dtype"] == "float32"
    assert config["architectures"] == ["LlamaForCausalLM"]
    again = ecstruct.load(tmp_path / "saved", device="cpu")
    weights = [dict(model.named_parameters()) for model in (by_file, again)]
    assert all(torch.equal(p, weights[1][name]) for name, p in weights[0].items())


def test_a_file_is_scored_and_its_origin_is_in_the_result(tmp_path):
    plain = gguf_files.plain_model("llama")
    before = gguf_files.write(tmp_path / "before.gguf", "llama", plain, TYPE.Q8_0)
    after = gguf_files.write(tmp_path / "after.gguf", "llama", plain, TYPE.Q4_1)
    prompts = [("live in", "in"), ("in live", "a")]
    in_memory = ecstruct.score(before, after, prompts, progress=False)
    engine = ecstruct.ScoreEngine(before, after, offload=True, progress=False)
    on_disk = engine.score(prompts)
    for scores in (in_memory, on_disk):
        assert scores.attrs["before"]["weights"] == "dequantised from Q8_0"
        assert scores.attrs["after"]["weights"] == "dequantised from Q4_1"
    assert scores.attrs["after"]["fingerprint"] == in_memory.attrs["after"]["fingerprint"]
    assert abs(in_memory.mlp).max() > 0
    assert in_memory.mlp.equals(on_disk.mlp)


BAD = {
    "an adapter": ({"said": {"general.type": "adapter"}}, "is no model but an adapter"),
    "a part": ({"said": {"split.count": 3}}, "one of 3 parts"),
    "a scaled rotary": (
        {"said": {"llama.rope.scaling.type": "linear"}},
        "llama.rope.scaling.type = linear",
    ),
    "a window": ({"said": {"llama.attention.sliding_window": 4}}, "transformers makes nothing"),
    "another head size": ({"said": {"llama.attention.key_length": 8}}, "transformers makes 16"),
    "an unknown key": ({"said": {"llama.logit_scale": 0.5}}, "llama.logit_scale = 0.5"),
    "more tensors": ({"more": {"rope_freqs.weight": np.ones(8, np.float32)}}, "has rope_freqs.weight"),
    "fewer tensors": ({"without": "blk.1.ffn_up.weight"}, "no weights of the right shape for .*layers.1"),
    "other words": ({"pre": "deepseek-llm"}, "'deepseek-llm'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_would_be_read_as_another_model_is_refused(tmp_path, case, cache):
    options, words = BAD[case]
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.plain_model("llama"), **options)
    with pytest.raises(InputError, match=words) as refusal:
        ecstruct.load(path)
    assert str(path) in str(refusal.value)
    assert not [*cache.rglob("config.json")]


def _claims_much(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:8] + (2**60).to_bytes(8, "little") * 2 + content[24:])


DAMAGE = {
    "truncated in a tensor": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "truncated in its header": lambda path: path.write_bytes(path.read_bytes()[:300]),
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_bytes(b"PK" + bytes(1000)),
    "with a count beyond its end": _claims_much,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_file_is_refused_in_a_sentence(tmp_path, damage):
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.plain_model("llama"))
    DAMAGE[damage](path)
    with pytest.raises(InputError, match=r"m\.gguf is no GGUF file to be read") as refusal:
        ecstruct.load(path)
    assert str(refusal.value).count("\n") == 0 and len(str(refusal.value)) < 500


def test_of_several_files_in_a_folder_one_is_to_be_chosen(tmp_path):
    path = gguf_files.write(tmp_path / "a.gguf", "llama", gguf_files.plain_model("llama"))
    shutil.copy(path, tmp_path / "b.gguf")
    with pytest.raises(InputError, match=r"several GGUF files \(a\.gguf, b\.gguf\)"):
        ecstruct.load(tmp_path)


def test_a_quantisation_that_transformers_does_not_read_is_refused(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.plain_model("llama"), TYPE.Q5_0)
    with pytest.raises(InputError, match=r"does not read \(holds tensors of ggml type 6"):
        ecstruct.load(path)


def test_a_scale_of_attention_that_no_file_says_is_not_guessed(tmp_path):
    plain = gguf_files.plain_model("gemma2", head_dim=16)  # transformers would take 1 / sqrt(256)
    path = gguf_files.write(tmp_path / "m.gguf", "gemma2", plain)
    with pytest.raises(InputError, match="does not say by what its attention is scaled"):
        ecstruct.load(path)


def test_other_architectures_are_refused(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.plain_model("llama"))
    path.write_bytes(path.read_bytes().replace(b"llama", b"mamba"))
    with pytest.raises(InputError, match="has the architecture mamba, and those that are read"):
        ecstruct.load(path)


def test_the_package_is_asked_for(tmp_path, monkeypatch):
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.plain_model("llama"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    monkeypatch.setattr("ecstruct.models.gguf.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'ecstruct\[gguf\]'"):
        ecstruct.load(path)


def test_the_command_line_takes_files(tmp_path):
    path = gguf_files.write(tmp_path / "m.gguf", "llama", gguf_files.plain_model("llama"), TYPE.Q4_1)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "live", "answer": "in"}\n{"prompt": "in", "answer": "12"}\n')
    assert "mean rank" in works("rank", "--model", path, "--prompts", prompts, "--quiet").output
    path.write_bytes(b"GGUF")
    refused(run("rank", "--model", path, "--prompts", prompts), "is no GGUF file to be read")
