import json

import pytest
import torch
from helpers.facts_fixtures import hugging_face
from helpers.folders import FAMILIES, edit_config, edit_weights, save, save_llama, truncate
from helpers.model_pairs import logits, pair
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file

import ecstruct
from ecstruct.errors import InputError
from ecstruct.models import WeightDelta, load
from ecstruct.models.bridge import named_weights
from ecstruct.models.delta import check_same
from ecstruct.models.fingerprint import fingerprint


def bits(model):
    return {name: p.detach().clone() for name, p in named_weights(model).items()}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    return pair(tmp_path_factory.mktemp("llamas"), "llama")


@pytest.mark.parametrize(
    ("family", "tied"), [*((family, False) for family in FAMILIES), ("gpt2", True), ("gemma2", True)]
)
def test_the_delta_leads_from_one_model_to_the_other(tmp_path, family, tied):
    before, after = pair(tmp_path, family, tied=tied)
    untouched = bits(before)
    delta = WeightDelta.between(before, after)
    assert set(delta.tensors) == set(untouched), "every tensor changed, query, key and value apart"
    moved = delta.apply_to(before)
    found = named_weights(moved)
    for name, p in named_weights(after).items():
        # a + (b - a) is b up to the rounding of one subtraction
        torch.testing.assert_close(found[name], p, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(logits(moved), logits(after), rtol=1e-4, atol=1e-4)
    for name, p in named_weights(before).items():
        assert torch.equal(p, untouched[name]), name
        assert p.data_ptr() != found[name].data_ptr(), f"{name} is shared"


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_tied_embeddings_arrive_exactly_and_stay_one_tensor(tmp_path, family):
    before = load(save(tmp_path / "before", family, tied=True), device="cpu")
    after = save(tmp_path / "after", family, tied=True)
    edit_weights(after, lambda tensors: [t.mul_(2) for t in tensors.values()])  # 2w - w is w exactly
    after = load(after, device="cpu")
    moved = WeightDelta.between(before, after).apply_to(before)
    assert torch.equal(logits(moved), logits(after))
    found = named_weights(moved)
    for name, p in named_weights(after).items():
        assert torch.equal(found[name], p), name
    assert torch.equal(found["embed.weight"], found["unembed.weight"])


def test_a_delta_of_whole_steps_comes_back_bit_for_bit(llamas, tmp_path):
    before, _ = llamas
    generator = torch.Generator().manual_seed(2)
    change = {
        n: p.detach() * torch.randint(0, 2, p.shape, generator=generator) for n, p in bits(before).items()
    }
    after = WeightDelta(change).apply_to(before)
    delta = WeightDelta.between(before, after)
    for name, t in change.items():
        assert torch.equal(delta.tensors[name], t), name
    delta.save(tmp_path / "delta.safetensors")
    again = WeightDelta.load(tmp_path / "delta.safetensors")
    assert fingerprint(again.tensors) == fingerprint(delta.tensors)
    assert fingerprint(bits(again.apply_to(before))) == fingerprint(bits(after))


def test_it_is_the_difference_of_the_hugging_face_weights(llamas, tmp_path):
    before, after = pair(tmp_path, "llama")
    a = dict(hugging_face(tmp_path / "before").named_parameters())
    b = dict(hugging_face(tmp_path / "after").named_parameters())
    name = "model.layers.1.self_attn.k_proj.weight"
    found = WeightDelta.between(before, after).tensors["blocks.1.attn.k.weight"]
    assert torch.equal(found, b[name] - a[name])


def test_of_a_model_with_itself_nothing_is_stored(llamas):
    before, _ = llamas
    delta = WeightDelta.between(before, before)
    assert delta.tensors == {}
    assert fingerprint(bits(delta.apply_to(before))) == fingerprint(bits(before))


def test_the_metadata_say_which_two_models_it_is_the_difference_of(llamas, tmp_path):
    before, after = llamas
    delta = WeightDelta.between(before, after)
    path = tmp_path / "new" / "delta.safetensors"
    delta.save(path)
    found = WeightDelta.load(path).metadata
    assert found == delta.metadata
    assert found["before"].endswith("before") and found["after"].endswith("after")
    assert found["before_fingerprint"] == fingerprint(named_weights(before))
    assert found["after_fingerprint"] == fingerprint(named_weights(after))


numbers = st.floats(-8, 8, width=16)  # few bits, so that sums are exact


def deltas(names="ab"):
    values = arrays("float32", (2, 3), elements=numbers).map(torch.from_numpy)
    return st.dictionaries(st.sampled_from(names), values).map(WeightDelta)


def same(a: WeightDelta, b: WeightDelta) -> bool:
    zero = torch.zeros(2, 3)
    return all(torch.equal(a.tensors.get(n, zero), b.tensors.get(n, zero)) for n in "abc")


@given(deltas(), deltas("bc"), deltas("ac"), st.sampled_from([-2.0, 0.0, 0.5, 3.0]))
def test_deltas_are_vectors(a, b, c, k):
    zero = WeightDelta({})
    assert same(a + b, b + a)
    assert same((a + b) + c, a + (b + c))
    assert same(a - a, zero) and same(a + zero, a)
    assert same(-a, -1 * a) and same(-1.0 * -a, a)
    assert same(a - b, a + -b)
    assert same(k * (a + b), k * a + k * b) and same(k * a, a * k)
    for name, t in a.tensors.items():
        assert torch.equal((k * a).tensors[name], k * t)


def test_sums_of_deltas_do_not_change_what_they_are_made_of(llamas):
    delta = WeightDelta.between(*llamas)
    was = fingerprint(delta.tensors)
    _ = delta + delta, delta - delta, -delta, 2 * delta, delta.restrict(layers=[0])
    assert fingerprint(delta.tensors) == was


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"layers": [1]}, lambda n: n.startswith("blocks.1.")),
        ({"layers": range(2)}, lambda n: n.startswith("blocks.")),
        ({"kinds": ["mlp"]}, lambda n: ".mlp." in n),
        ({"kinds": ["attn", "unembed"]}, lambda n: ".attn." in n or n.startswith("unembed")),
        ({"layers": [0], "kinds": ["mlp"]}, lambda n: n.startswith("blocks.0.mlp.")),
        ({}, lambda n: True),
    ],
)
def test_a_part_of_a_delta_is_that_part_alone(llamas, options, kept):
    before, after = llamas
    delta = WeightDelta.between(before, after)
    part = delta.restrict(**options)
    expected = {n for n in delta.tensors if kept(n)}
    assert set(part.tensors) == expected and expected
    moved = bits(part.apply_to(before))
    for name, p in bits(before).items():
        assert torch.equal(moved[name], p) == (name not in expected), name
    others = WeightDelta({n: t for n, t in delta.tensors.items() if n not in expected})
    assert fingerprint((part + others).tensors) == fingerprint(delta.tensors)


def test_an_unknown_kind_is_refused(llamas):
    with pytest.raises(InputError, match="unknown kind of weight 'mpl': choose among embed, attn, mlp"):
        WeightDelta({}).restrict(kinds=["mpl"])


def test_models_that_do_not_match_are_told_apart_by_the_first_tensor(llamas, tmp_path):
    before, _ = llamas

    def llama(**config):
        return load(save_llama(tmp_path / str(config), **config), device="cpu")

    others = {
        r"blocks\.1\.\S+: \(\S+ \S+\) before, absent after": llama(num_hidden_layers=1),
        r"blocks\.2\.\S+: absent before": llama(num_hidden_layers=3),
        r"embed\.weight: \(\d+, 32\) before, \(20, 32\) after": llama(vocab_size=20),
        r"embed\.weight: \(\d+, 32\) before, \(\d+, 16\)": llama(hidden_size=16),
        r"blocks\.0\.mlp\.\S+: \(\S+ \S+\) before, \(\S+ \S+\) after": llama(intermediate_size=40),
        r"blocks\.0\.mlp\.gate\.weight: \(48, 32\) before, absent after": load(
            save(tmp_path / "gpt2", "gpt2"), device="cpu"
        ),
    }
    for message, other in others.items():
        with pytest.raises(InputError, match=f"the models differ in .*{message}"):
            WeightDelta.between(before, other)


def test_the_first_difference_is_named_in_the_order_of_the_model():
    a = {"x": torch.zeros(2), "y": torch.zeros(2), "z": torch.zeros(2)}
    with pytest.raises(InputError, match=r"differ in y: \(2,\) before, \(3,\) after"):
        check_same(a, {**a, "z": torch.zeros(5), "y": torch.zeros(3)})
    with pytest.raises(InputError, match=r"differ in w: absent before, \(1,\) after"):
        check_same(a, {**a, "w": torch.zeros(1)})


def test_deltas_of_other_models_do_not_fit(llamas):
    before, _ = llamas
    name = "blocks.0.mlp.in.weight"
    with pytest.raises(InputError, match=rf"does not fit the model in {name}: \(3, 3\) against \(48, 32\)"):
        WeightDelta({name: torch.ones(3, 3)}).apply_to(before)
    with pytest.raises(InputError, match=r"does not fit the model in blocks\.7.*no such tensor"):
        WeightDelta({"blocks.7.mlp.in.weight": torch.ones(3, 3)}).apply_to(before)
    with pytest.raises(InputError, match=r"deltas differ in the shape of w: \(1, 2\) and \(2, 1\)"):
        _ = WeightDelta({"w": torch.ones(1, 2)}) + WeightDelta({"w": torch.ones(2, 1)})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "delta.safetensors"
    WeightDelta({"blocks.0.mlp.in.weight": torch.ones(4, 4)}, {"before": "a"}).save(path)
    return path


def foreign(path):
    save_file({"w": torch.ones(2)}, path, {"format": "pt"})


def no_metadata(path):
    save_file({"w": torch.ones(2)}, path, {"format": "ecstruct-delta-1"})


def odd_metadata(path):
    save_file({"w": torch.ones(2)}, path, {"format": "ecstruct-delta-1", "metadata": "{"})


def nan(path):
    WeightDelta({"blocks.0.w": torch.tensor([1.0, torch.nan])}).save(path)


DAMAGE = {
    "missing": (lambda path: path.unlink(), "cannot be read"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "cannot be read"),
    "truncated": (truncate, "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "text": (lambda path: path.write_text("no delta at all"), "cannot be read"),
    "foreign": (foreign, "is no weight delta"),
    "no metadata": (no_metadata, "is no weight delta"),
    "odd metadata": (odd_metadata, "is no weight delta"),
    "NaN": (nan, r"NaN or infinite values in blocks\.0\.w"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_files_that_are_no_delta(saved, what):
    damage, message = DAMAGE[what]
    damage(saved)
    with pytest.raises(InputError, match=message) as caught:
        WeightDelta.load(saved)
    text = str(caught.value)
    assert str(saved) in text and "\n" not in text and "Error" not in text, text


def test_a_failing_write_leaves_the_old_file_and_no_other(saved, monkeypatch):
    was = saved.read_bytes()

    def fails(path, _tensors, _header):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ecstruct.models.delta.write_tensors", fails)
    with pytest.raises(InputError, match=r"cannot write .*delta\.safetensors: No space left on device\."):
        WeightDelta({"w": torch.zeros(1)}).save(saved)
    assert saved.read_bytes() == was
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_an_exception_of_any_kind_leaves_no_half_file(saved, monkeypatch):
    def stopped(path, _tensors, _header):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("ecstruct.models.delta.write_tensors", stopped)
    with pytest.raises(KeyboardInterrupt):
        WeightDelta({"w": torch.zeros(1)}).save(saved)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert json.loads(json.dumps(dict(WeightDelta.load(saved).metadata))) == {"before": "a"}


def test_a_float64_difference_stays_float64(tmp_path):
    folder = save(tmp_path / "a")
    before = load(folder, device="cpu", dtype=torch.float64)
    after = load(edit_config(folder), device="cpu", dtype=torch.float64)
    with torch.no_grad():
        named_weights(after)["embed.weight"].add_(1e-12)
    delta = ecstruct.WeightDelta.between(before, after)
    assert delta.tensors["embed.weight"].dtype == torch.float64
    torch.testing.assert_close(delta.tensors["embed.weight"].max().item(), 1e-12, rtol=1e-3, atol=0)
