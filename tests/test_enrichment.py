"""The attributes rate and sublayer knockout, against plain models, hooks and plain loops."""

import copy

import numpy as np
import pytest
import torch
from helpers.oracle import blocks, outside
from helpers.recall_cases import SUBJECTS, span_of, states, unembedding, without_queries, writer, zeros_at
from helpers.tiny import (
    N_LAYERS,
    SHAPES,
    hooked,
    hooked_pair,
    plain_pair,
    tokenizer,
)

import ecstruct
from ecstruct import InputError, Prompt
from ecstruct.organism import World
from ecstruct.plots import attributes_rate_lines, sublayer_lines
from ecstruct.recall import copies
from ecstruct.recall.attributes import Attributes
from ecstruct.recall.enrichment import attributes_rate, sublayer_knockout
from ecstruct.recall.vocabulary import top_and_kept

TOP, KEPT = 12, 4
WORDS = {
    "Ada": "Dutch Ada knows people",
    "Bo Li": "Thai Zulu Norse speak",
    "Cy de Wit": "Wit Norse knows",
    "Di": "Dutch Thai Old",
    "Ed Roy": "Roy Zulu Ada Wit speak",
}
PLACES = {
    "subject-last": lambda span, n: [span[-1]],
    "subject-first": lambda span, n: [span[0]],
    "subject-others": lambda span, n: list(span[1:-1]),
    "after-subject": lambda span, n: [span[-1] + 1],
    "first": lambda span, n: [0],
    "last": lambda span, n: [n - 1],
}


def attributes_of(family: str) -> Attributes:
    return Attributes.from_texts({s: [text] for s, text in WORDS.items()}, hooked_pair(family)[0])


def rate_of(plain, hidden: torch.Tensor, subject: str, onto: str = "unembedding") -> float:
    """The definition, token by token."""
    matrix = unembedding(plain) if onto == "unembedding" else plain.get_input_embeddings().weight.detach()
    order = (hidden @ matrix.T).argsort(descending=True)[:TOP].tolist()
    words = [tokenizer().convert_ids_to_tokens(i).lower() for i in order]
    stop = ("that", "<pad>", "<unk>", "knows")  # of this vocabulary
    kept = [w for w in words if len(w) > 2 and w not in stop][:KEPT]
    its = {w for w in WORDS[subject].lower().split() if len(w) > 2 and w not in stop}
    return 100 * sum(w in its for w in kept) / len(kept)


ONTO = [(False, "unembedding"), (True, "unembedding"), (False, "embedding")]


@pytest.mark.parametrize(("family", "how"), [*zip(SHAPES, 2 * ONTO, strict=True)])
def test_rates_are_those_of_plain_hidden_states(family, how):
    normed, onto = how
    plain, model = plain_pair(family)[0], hooked_pair(family)[0]
    found = attributes_rate(
        model, SUBJECTS, attributes_of(family), normed=normed, onto=onto, top=TOP, kept=KEPT, progress=False
    )
    assert found.dims == ("prompt", "position", "layer") and found.attrs["unit"] == "%"
    norm = outside(plain)["ln_final"] if normed else torch.nn.Identity()
    for i, prompt in enumerate(SUBJECTS):
        for layer, state in enumerate(states(plain, prompt)[0]):
            for name, places in PLACES.items():
                at = places(span_of(prompt), len(state))
                with torch.no_grad():
                    rates = [rate_of(plain, norm(state[p]), prompt.subject, onto) for p in at]
                expected = np.mean(rates) if at else np.nan
                value = float(found.sel(prompt=i, position=name, layer=layer))
                assert value == pytest.approx(expected, nan_ok=True), (i, name, layer)
        ids = tokenizer()(prompt.text)["input_ids"]
        embedding = plain.get_input_embeddings().weight.detach()[[ids[p] for p in span_of(prompt)]].mean(0)
        with torch.no_grad():
            alone = rate_of(plain, norm(embedding), prompt.subject, onto)
        assert float(found["embedding"][i]) == pytest.approx(alone)
    assert found.std("prompt").max() > 10  # there is something to agree on


def test_a_position_that_a_prompt_has_not_is_nan_and_its_tokens_are_named():
    rates = attributes_rate(
        hooked_pair("llama")[0], SUBJECTS, attributes_of("llama"), top=TOP, kept=KEPT, progress=False
    )
    missing = rates.sel(position="subject-others").isnull()
    assert missing.values[[0, 1, 3, 4]].all() and not missing.values[2].any()
    assert rates.token.sel(prompt=2).values.tolist() == ["Wit", "Cy", "de", "knows", "<bos>", "speak"]
    assert rates.token.sel(prompt=0).values.tolist() == ["Ada", "Ada", "", "knows", "<bos>", "speak"]


@pytest.mark.parametrize(
    ("family", "mode", "group"),
    [
        *((family, "uniform", "subject-last") for family in SHAPES),
        *(("gpt2", "zero", "subject-last"), ("olmo2", "zero", "subject-last")),
        *(("gptj", "zero", "subject"), ("gemma3", "zero", "subject")),
    ],
)
def test_sublayer_knockout_is_that_of_hooks_on_plain_modules(family, mode, group, monkeypatch):
    monkeypatch.setattr(copies, "Stacked", None)  # these models read packed prompts
    plain, model = plain_pair(family)[0], hooked_pair(family)[0]
    prompts, at = SUBJECTS[1:4], 2
    found = sublayer_knockout(
        model, prompts, attributes_of(family), at_layer=at, window=2, mode=mode, position=group, top=TOP,
        kept=KEPT, progress=False,
    )  # fmt: skip
    assert found.dims == ("part", "prompt", "layer") and found.sizes["layer"] == at + 1
    for i, prompt in enumerate(prompts):
        read = list(span_of(prompt)) if group == "subject" else [span_of(prompt)[-1]]

        def rate(edits=(), prompt=prompt, read=read):
            hidden = states(plain, prompt, edits)[0][at]
            return np.mean([rate_of(plain, hidden[position], prompt.subject) for position in read])

        whole = rate()
        assert float(found.rate[i]) == pytest.approx(whole)
        for part in ("attention", "mlp"):
            for first in range(at + 1):
                edits = []
                for block in blocks(plain)[first : min(first + 2, at + 1)]:
                    if mode == "zero":
                        edits.append((writer(block, part), "output", zeros_at(read)))
                    elif part == "mlp":
                        edits.append((block.out, "input", torch.zeros_like))
                    else:
                        edits += without_queries(plain, block)
                value = float(found.sel(part=part, layer=first).isel(prompt=i))
                assert value == pytest.approx(rate(edits) - whole), (i, part, first)
    assert np.abs(found.values).max() > 0


def test_models_that_read_no_packed_prompts_take_whole_ones(monkeypatch):
    model, its = hooked_pair("gemma2")[0], attributes_of("gemma2")
    options = {"position": "subject", "window": 2, "top": TOP, "kept": KEPT, "progress": False}
    packed = sublayer_knockout(model, SUBJECTS, its, **options)
    monkeypatch.setattr(copies.Packed, "run_blocks", lambda *_: (_ for _ in ()).throw(copies.Unlike))
    assert sublayer_knockout(model, SUBJECTS, its, **options).equals(packed)


def test_knockout_reads_where_the_rate_is_highest_unless_told():
    model, its = hooked_pair("llama")[0], attributes_of("llama")
    rates = attributes_rate(model, SUBJECTS, its, top=TOP, kept=KEPT, progress=False)
    highest = int(rates.sel(position="subject-last").mean("prompt").values.argmax())
    found = sublayer_knockout(model, SUBJECTS, its, top=TOP, kept=KEPT, progress=False)
    assert found.attrs["options"]["at_layer"] == highest and found.attrs["options"]["window"] == 1
    np.testing.assert_allclose(found.rate, rates.sel(position="subject-last", layer=highest))


def test_projections_of_stop_words_alone_have_no_rate():
    """Of a model that says "that" or "knows" whatever it sees, if it is asked for one token."""
    plain = copy.deepcopy(plain_pair("llama")[0])
    with torch.no_grad():
        plain.lm_head.weight[:, 0] = -1
        plain.model.embed_tokens.weight[:, 0] = 100
        plain.lm_head.weight[tokenizer().convert_tokens_to_ids(["that", "knows"]), 0] = 1
    model = hooked(plain)
    its = Attributes.from_texts({s: [text] for s, text in WORDS.items()}, model)
    assert attributes_rate(model, SUBJECTS, its, top=2, progress=False).isnull().all()
    with pytest.raises(InputError, match="no token of any projection is left"):
        sublayer_knockout(model, SUBJECTS, its, top=2, progress=False)


@pytest.mark.parametrize("family", ["mixtral", "cohere"])
def test_other_architectures_can_be_read(family):
    its = attributes_of(family)
    for mode in ("zero", "uniform"):
        found = sublayer_knockout(
            hooked_pair(family)[0], SUBJECTS, its, at_layer=2, mode=mode, top=TOP, kept=KEPT, progress=False
        )
        assert np.isfinite(found.values).all()


# --- Attributes ---


def test_shuffled_attributes_are_the_same_sets_of_others():
    its = attributes_of("llama")
    shuffled = its.shuffled(1)
    assert sorted(map(sorted, shuffled.values())) == sorted(map(sorted, its.values()))
    assert shuffled.words != its.words and shuffled.words == its.shuffled(1).words


# --- What is looked at, and what cannot be ---


def test_how_much_of_a_projection_is_looked_at():
    assert top_and_kept(None, None, 50257) == (500, 50)
    assert top_and_kept(None, None, 514) == (51, 5)
    assert top_and_kept(None, None, 20) == (2, 1)
    assert top_and_kept(3, None, 50257) == (3, 3)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"top": 0}, "top=0"),
        ({"top": 1000}, "top=1000: the vocabulary has 21 tokens"),
        ({"top": 5, "kept": 6}, "kept=6: of top=5"),
        ({"positions": ["subject-middle"]}, "no group of positions 'subject-middle'"),
        ({"positions": []}, "has no group"),
        ({"onto": "residual"}, "onto='residual' is unknown"),
    ],
)
def test_bad_options_of_rates(options, complaint):
    with pytest.raises(InputError, match=complaint):
        attributes_rate(
            hooked_pair("llama")[0], SUBJECTS, attributes_of("llama"), progress=False, **options
        )


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mode": "mean"}, "mode='mean' is unknown"),
        ({"parts": ["heads"]}, "parts="),
        ({"window": 4}, "window=4: this model has 3 layers"),
        ({"at_layer": N_LAYERS}, "at_layer=3"),
        ({"position": "subject-others"}, "has no token in"),
    ],
)
def test_bad_options_of_sublayer_knockout(options, complaint):
    with pytest.raises(InputError, match=complaint):
        sublayer_knockout(
            hooked_pair("llama")[0], SUBJECTS, attributes_of("llama"), progress=False, **options
        )


def test_subjects_that_nothing_is_known_of_are_named():
    model, its = hooked_pair("llama")[0], attributes_of("llama")
    with pytest.raises(InputError, match="has no subject: give it one"):
        attributes_rate(model, [Prompt("people that Ada knows speak", "Dutch")], its, progress=False)
    few = Attributes({"Ada": frozenset({"dutch"}), "Di": frozenset()}, "my list")
    with pytest.raises(InputError, match="no attributes of the subject 'Bo Li' from my list: add texts"):
        attributes_rate(model, SUBJECTS, few, progress=False)
    foreign = Attributes({"Ada": frozenset({"atlantis"})}, "my list")
    with pytest.raises(InputError, match="no attribute of the subject 'Ada' is a token"):
        attributes_rate(model, SUBJECTS[:1], foreign, progress=False)


# --- On the organism ---


def test_the_organism_enriches_its_subjects_by_mlps():
    """Towards the embeddings of their attributes, as it has another unembedding."""
    people = [p for p in World.build().people if not p.held_out][:60]
    facts = [Prompt(f"{p.name} lives in", p.home.name, subject=p.name) for p in people]
    model = ecstruct.load("organism")
    its = Attributes.of_organism(model).about(facts)
    options = {"onto": "embedding", "progress": False}
    rates, by_chance = (
        attributes_rate(model, facts, a, **options).sel(position="subject-last").mean("prompt")
        for a in (its, its.shuffled())
    )
    assert rates[0] < 4 < 7 < rates[3:5].min() and by_chance.max() < 3
    change = sublayer_knockout(model, facts, its, at_layer=4, window=3, **options).mean("prompt")
    assert change.sel(part="mlp", layer=1) < -3


# --- Figures ---


def test_figures_show_means_over_prompts():
    model, its, options = hooked_pair("llama")[0], attributes_of("llama"), {"top": TOP, "kept": KEPT}
    rates = attributes_rate(model, SUBJECTS, its, progress=False, **options)
    lines = [t for t in attributes_rate_lines(rates).data if t.mode == "lines+markers"]
    assert [line.name for line in lines] == [*PLACES, "embedding"]
    np.testing.assert_allclose(lines[-1].y, float(rates["embedding"].mean()))
    np.testing.assert_allclose(lines[0].y, rates.sel(position="subject-last").mean("prompt"))
    np.testing.assert_allclose(lines[2].y, rates.sel(position="subject-others", prompt=2))
    changes = sublayer_knockout(model, SUBJECTS, its, at_layer=2, progress=False, **options)
    figure = sublayer_lines({"before": changes, "after": changes})
    lines = [t for t in figure.data if t.mode == "lines+markers"]
    np.testing.assert_allclose(lines[1].y, changes.sel(part="mlp").mean("prompt"))
    assert figure.layout.xaxis.title.text == "first layer cancelled"
