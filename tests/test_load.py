import logging
import pickle
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from helpers.facts_fixtures import hugging_face, word_tokenizer
from helpers.folders import FAMILIES, edit_config, edit_weights, save, truncate
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, MambaConfig, MambaForCausalLM

import ecstruct
from ecstruct import named_models
from ecstruct.errors import InputError
from ecstruct.finetuning.rates import learning_rate
from ecstruct.models import classifiers, load, sources
from ecstruct.models.bridge import named_weights
from ecstruct.models.provenance import provenance, tokenizer_of
from ecstruct.named_models import NamedModel

IDS = torch.tensor([[4, 7, 5, 9, 3, 8, 6], [11, 5, 4, 3, 10, 6, 7]])


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Nothing here may ask the network for anything."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def folder(llama, tmp_path) -> Path:
    """A folder to damage."""
    return Path(shutil.copytree(llama, tmp_path / "model"))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS, return_type="logits", use_cache=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_hugging_face(tmp_path, family):
    folder = save(tmp_path, family)
    with torch.no_grad():
        expected = hugging_face(folder)(IDS).logits
    torch.testing.assert_close(
        logits(load(folder, device="cpu")), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )


def test_weights_are_the_checkpoints_own_and_ready_to_read(llama):
    model = load(str(llama), device="cpu")
    assert not any(module.training for module in model.modules())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    q = dict(hugging_face(llama).named_parameters())["model.layers.1.self_attn.q_proj.weight"]
    assert torch.equal(named_weights(model)["blocks.1.attn.q.weight"], q)
    assert provenance(model).source == str(llama)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_dtype_is_the_one_asked_for(llama, dtype):
    model = load(llama, device="cpu", dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.equal(next(hugging_face(llama, dtype).parameters()), next(model.parameters()))


def test_a_checkpoint_in_half_precision_is_loaded_as_float32(folder):
    edit_weights(folder, lambda t: t.update({n: w.half() for n, w in t.items()}))
    assert {p.dtype for p in load(folder, device="cpu").parameters()} == {torch.float32}


def test_the_organism_is_found_by_name():
    model = load("organism", device="cpu")
    assert (len(model.blocks), provenance(model).source) == (6, "organism")


def test_a_registered_name_is_a_source_with_its_learning_rate(llama, monkeypatch):
    monkeypatch.setitem(
        named_models._REGISTERED, "twin", lambda: NamedModel(lambda: (llama, "of a test"), 0.125)
    )
    model = load("twin", device="cpu")
    assert torch.equal(logits(model), logits(load(llama, device="cpu")))
    assert provenance(model).described == {"source": "twin", "revision": None, "weights": "of a test"}
    assert learning_rate(model, None) == 0.125
    sources.check_there("twin")
    with pytest.raises(InputError, match="twin has no revisions"):
        load("twin", revision="v2")
    with pytest.raises(InputError, match="'organism' and 'smollm2' and 'minilm' and 'twin'"):
        load("./nowhere")
    assert ecstruct.load is load


def test_a_model_in_memory_comes_with_its_tokenizer(llama):
    tokenizer = word_tokenizer()  # never saved: it has no path
    hf = hugging_face(llama)
    with torch.no_grad():
        expected = hf(IDS).logits
    model = load(hf.train(), tokenizer=tokenizer, device="cpu")
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert tokenizer_of(model)("Mia lives in").input_ids == tokenizer("Mia lives in").input_ids


@pytest.mark.parametrize("special", [{}, {"bos_token": "<bos>"}])
def test_a_tokenizer_from_nowhere_stays_as_it_is(llama, special):
    tokenizer = word_tokenizer(**special)
    was = (dict(tokenizer.special_tokens_map), len(tokenizer), str(tokenizer.init_kwargs))
    model = load(hugging_face(llama), tokenizer=tokenizer, device="cpu")
    assert (dict(tokenizer.special_tokens_map), len(tokenizer), str(tokenizer.init_kwargs)) == was
    assert tokenizer_of(model).special_tokens_map == was[0]


def test_a_models_tokenizer_is_neither_missing_nor_extra(llama):
    with pytest.raises(InputError, match="needs its tokenizer: pass tokenizer="):
        load(hugging_face(llama))
    with pytest.raises(InputError, match="brings its own"):
        load(llama, tokenizer=word_tokenizer())


def test_the_tokenizer_is_the_checkpoints_not_one_that_adds_a_bos(llama, tmp_path):
    folder = Path(shutil.copytree(llama, tmp_path / "bos"))
    own = word_tokenizer(bos_token="Grace")  # any word of the vocabulary will do
    own.save_pretrained(folder)
    model = load(folder, device="cpu")
    text = "Mia lives in"
    assert own("Mia lives in").input_ids == tokenizer_of(model)(text).input_ids
    added = model.to_tokens(text)[0].tolist()
    assert added == [own.bos_token_id, *own(text).input_ids], "TransformerLens adds no BOS: nothing tested"


@pytest.mark.parametrize(
    ("source", "options", "asked"),
    [
        ("org/model@v2", {}, ("org/model", "v2")),
        ("org/model", {"revision": "abc"}, ("org/model", "abc")),
        ("org/model@abc", {"revision": "abc"}, ("org/model", "abc")),
        ("gpt", {}, ("gpt", None)),
    ],
)
def test_a_revision_goes_to_weights_and_tokenizer(monkeypatch, llama, source, options, asked):
    seen = []

    def answering(auto):
        def from_pretrained(name, *, trust_remote_code, revision, **rest):
            seen.append((name, revision, trust_remote_code))
            return auto.from_pretrained(llama, **rest)

        return SimpleNamespace(from_pretrained=from_pretrained)

    asked_by = {"AutoConfig": sources, "AutoModelForCausalLM": classifiers, "AutoTokenizer": sources}
    for auto, module in asked_by.items():
        monkeypatch.setattr(module, auto, answering(getattr(module, auto)))
    origin = provenance(load(source, device="cpu", **options))
    assert seen == 3 * [(*asked, False)]
    assert (origin.source, origin.revision) == asked


def test_two_revisions_are_one_too_many():
    with pytest.raises(InputError, match="two revisions are given, 'a' and 'b'"):
        load("org/model@a", revision="b")


def test_a_folder_may_have_an_at_in_its_name(llama, tmp_path):
    folder = shutil.copytree(llama, tmp_path / "model@3")
    assert provenance(load(folder, device="cpu")).revision is None


class Bomb:
    """Leaves a mark when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_pickles_are_never_opened(folder, tmp_path):
    mark = tmp_path / "opened"
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(mark)))
    load(folder, device="cpu")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"no \*.safetensors weights"):
        load(folder, device="cpu")
    assert not mark.exists()


@pytest.mark.parametrize("model_type", ["llama", "unheard-of"])
def test_code_of_a_checkpoint_is_never_run(folder, tmp_path, model_type):
    mark = tmp_path / "run"
    (folder / "mine.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\n")
    names = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model"}
    edit_config(folder, model_type=model_type, auto_map=names)
    if model_type == "llama":  # transformers has its own class for it
        load(folder, device="cpu")
    else:
        with pytest.raises(InputError):
            load(folder, device="cpu")
    assert not mark.exists()


def drop(name):
    return lambda folder: edit_weights(folder, lambda t: t.pop(name))


def put(name, value):
    return lambda folder: edit_weights(folder, lambda t: t[name].view(-1)[3:4].fill_(value))


def halve(name):
    return lambda folder: edit_weights(folder, lambda t: t.update({name: t[name][:5].clone()}))


def only_bin(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_tokenizer(folder):
    for path in folder.glob("token*"):
        path.unlink()


def replace_by(config, cls):
    def change(folder):
        cls(config).save_pretrained(folder)

    return change


GATE = "model.layers.1.mlp.gate_proj.weight"
TINY = {"hidden_size": 16, "num_hidden_layers": 1}
BERT = BertConfig(**TINY, intermediate_size=16, num_attention_heads=2, vocab_size=20, is_decoder=False)
BROKEN = {
    "no config": (lambda f: (f / "config.json").unlink(), r"no config\.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), r"no \*\.safetensors weights"),
    "pickled weights": (only_bin, r"no \*\.safetensors weights"),
    "truncated weights": (lambda f: truncate(f / "model.safetensors"), "corrupt or truncated"),
    "corrupt weights": (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 999), "corrupt or trunc"),
    "empty weights": (lambda f: (f / "model.safetensors").write_bytes(b""), "corrupt or truncated"),
    "other weights": (
        lambda f: save_file({"x": torch.zeros(1)}, f / "model.safetensors", {"format": "pt"}),
        "no weights of the right shape for",
    ),
    "missing tensor": (drop(GATE), f"no weights of the right shape for {GATE}"),
    "missing head": (drop("lm_head.weight"), "no weights of the right shape for lm_head.weight"),
    "wrong shape": (halve(GATE), f"no weights of the right shape for {GATE}"),
    "NaN": (put(GATE, torch.nan), r"NaN or infinite values in blocks\.1\.mlp\.gate\.weight"),
    "infinite": (put("lm_head.weight", -torch.inf), r"NaN or infinite values in unembed\.weight"),
    "fewer layers": (
        lambda f: edit_config(f, num_hidden_layers=1),
        r"weights in model\.layers\.1\.input_layernorm\.weight that its config\.json does not ask for",
    ),
    "no tokenizer": (no_tokenizer, "no usable tokenizer"),
    "no decoder": (replace_by(BERT, BertForMaskedLM), r"is an encoder \(bert\), which continues no text"),
    "no attention": (replace_by(MambaConfig(**TINY, vocab_size=20), MambaForCausalLM), "Mamba"),
    "unknown architecture": (lambda f: edit_config(f, model_type="unheard-of"), "unheard-of"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence(folder, what, caplog):
    change, message = BROKEN[what]
    change(folder)
    with pytest.raises(InputError, match=message) as caught:
        load(folder, device="cpu")
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400 + 2 * len(str(folder)), text
    assert text.endswith(".") and ". " not in text and "Error" not in text, text
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]
    print(text)


@pytest.mark.parametrize(
    "source", ["nobody/has-this", "nobody/has-this@v1", "no-such-model", "./nowhere", "/a/b/c", "a/b/c"]
)
def test_what_is_neither_here_nor_on_the_hub(source):
    with pytest.raises(InputError) as caught:
        load(source)
    text = str(caught.value)
    assert source.partition("@")[0] in text and "\n" not in text
    print(text)


def test_a_file_is_no_folder(llama):
    with pytest.raises(InputError, match=r"is no weight delta.*or the folder of a model"):
        load(llama / "model.safetensors")


@pytest.mark.parametrize("device", ["cpuu", "cuda:99"])
def test_a_device_that_is_not_there(llama, device):
    with pytest.raises(InputError, match=f"no device '{device}' here"):
        load(llama, device=device)


def test_a_revision_of_what_has_none_is_refused(llama):
    with pytest.raises(InputError, match="organism has no revisions, and revision='v2' is given"):
        load("organism", revision="v2")
    with pytest.raises(InputError, match="organism has no revisions"):
        load("organism@v2")
    with pytest.raises(InputError, match="revision='v2' goes with a source"):
        load(hugging_face(llama), tokenizer=word_tokenizer(), revision="v2")
