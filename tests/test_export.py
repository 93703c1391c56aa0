import shutil

import pytest
import torch
from helpers.facts_fixtures import hugging_face, word_tokenizer
from helpers.folders import FAMILIES, contents, fill, save
from transformers import AutoTokenizer

import ecstruct
from ecstruct.errors import InputError
from ecstruct.models import WeightDelta, load, save_model, to_hugging_face
from ecstruct.models.bridge import named_weights
from ecstruct.models.fingerprint import fingerprint
from ecstruct.models.provenance import tokenizer_of

pytestmark = pytest.mark.tl3

IDS = torch.tensor([[4, 7, 5, 9, 3, 8, 6], [11, 5, 4, 3, 10, 6, 7]])
KINDS = [*((family, False) for family in FAMILIES), ("gpt2", True), ("gemma2", True)]


def changed(model):
    """The model with every weight moved; tied embeddings stay tied."""
    generator = torch.Generator().manual_seed(3)
    change = {
        name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in named_weights(model).items()
    }
    if torch.equal(named_weights(model)["embed.weight"], named_weights(model)["unembed.weight"]):
        change["unembed.weight"] = change["embed.weight"]
    return WeightDelta(change).apply_to(model)


def logits(model):
    with torch.no_grad():
        return model(IDS, return_type="logits", use_cache=False)


@pytest.mark.parametrize(("family", "tied"), KINDS)
def test_what_is_saved_loads_with_the_same_logits(tmp_path, family, tied):
    model = changed(load(save(tmp_path / "start", family, tied=tied), device="cpu"))
    was = fingerprint(named_weights(model))
    save_model(model, tmp_path / "saved")
    assert fingerprint(named_weights(model)) == was
    assert (tmp_path / "saved" / "model.safetensors").stat().st_mode & 0o777 == 0o644
    again = load(tmp_path / "saved", device="cpu")
    assert fingerprint(named_weights(again)) == was
    assert torch.equal(logits(again), logits(model))
    with torch.no_grad():
        plain = hugging_face(tmp_path / "saved")(IDS).logits
    torch.testing.assert_close(plain, logits(model), rtol=0, atol=1e-6 * float(plain.abs().max()))


def test_untouched_weights_are_saved_as_they_were(tmp_path):
    folder = save(tmp_path / "start", "neox")
    save_model(load(folder, device="cpu"), tmp_path / "saved")
    a, b = (dict(hugging_face(f).named_parameters()) for f in (folder, tmp_path / "saved"))
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_the_tokenizer_is_saved_with_the_model(tmp_path):
    folder = save(tmp_path / "start")
    save_model(load(folder, device="cpu"), tmp_path / "saved")
    found, own = (AutoTokenizer.from_pretrained(f) for f in (tmp_path / "saved", folder))
    assert found.get_vocab() == own.get_vocab()
    assert found("Mia lives in Rome").input_ids == own("Mia lives in Rome").input_ids


def test_a_plain_model_shares_nothing_with_the_hooked_one(tmp_path):
    model = load(save(tmp_path / "start", "gpt2"), device="cpu")
    was = fingerprint(named_weights(model))
    plain = to_hugging_face(model)
    assert not plain.training
    fill(plain, seed=9)
    assert fingerprint(named_weights(model)) == was


def test_a_finetuned_model_can_be_saved(tmp_path):
    model = load(save(tmp_path / "start"), device="cpu")
    tuned = ecstruct.finetune(
        model, [("Mia lives in", "Rome"), ("Grace lives in", "Paris")], lr=1e-2, epochs=1, progress=False
    ).model
    save_model(tuned, tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved", device="cpu")), logits(tuned))


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("mine", "exists and is not empty: choose another folder"),
        ("mine/notes", "is a file: choose a folder"),
        ("mine/notes/below", "cannot write"),
    ],
)
def test_nothing_is_overwritten(tmp_path, out, message):
    model = load(save(tmp_path / "start"), device="cpu")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    with pytest.raises(InputError, match=message):
        save_model(model, tmp_path / out)
    assert contents(tmp_path / "mine") == ["notes"] and (tmp_path / "mine/notes").read_text() == "mine"


def test_an_empty_folder_may_be_filled(tmp_path):
    model = load(save(tmp_path / "start"), device="cpu")
    (tmp_path / "saved").mkdir()
    save_model(model, str(tmp_path / "saved"))
    assert (tmp_path / "saved" / "model.safetensors").is_file()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_half_written(tmp_path, monkeypatch, error):
    model = load(save(tmp_path / "start"), device="cpu")
    shutil.rmtree(tmp_path / "start")

    def fails(_tokenizer, _folder):
        raise error

    # Config and weights are written by then.
    monkeypatch.setattr(type(tokenizer_of(model)), "save_pretrained", fails)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else InputError):
        save_model(model, tmp_path / "out" / "saved")
    assert not (tmp_path / "out" / "saved").exists()
    assert contents(tmp_path) == []


def test_a_model_made_in_memory_can_be_saved(tmp_path):
    hf = hugging_face(save(tmp_path / "start", "gpt2"))
    model = load(hf, tokenizer=word_tokenizer(), device="cpu")
    save_model(model, tmp_path / "saved")
    assert torch.equal(logits(load(tmp_path / "saved", device="cpu")), logits(model))
