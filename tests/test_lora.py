"""Adapters against a plain loop with peft on the Hugging Face model."""

import json
import math
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from helpers import command_line
from helpers.facts_fixtures import FACTS, hugging_face, save_tiny
from helpers.plain_finetuning import bits, changed, in_hugging_face_names, plain_loss, same_bits
from safetensors.torch import load_file

from ecstruct import runs
from ecstruct.errors import InputError
from ecstruct.evaluate import mean_rank
from ecstruct.finetuning import finetune
from ecstruct.models.delta import WeightDelta
from ecstruct.models.loading import load
from ecstruct.models.names import kind_of, layer_of

LR = 1e-2
PROJECTIONS = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "neox": ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {f: save_tiny(tmp_path_factory.mktemp(f), f) for f in PROJECTIONS}


@pytest.fixture(scope="module")
def gpt2(folders: dict[str, Path]) -> Any:
    return load(folders["gpt2"], device="cpu")


def run(model: Any, **options: Any) -> Any:
    return finetune(model, FACTS, **{"lr": LR, "epochs": 3, "batch_size": 6, "progress": False, **options})


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize(
    ("family", "variant"),
    [("llama", "rslora"), ("llama", "dora"), ("gpt2", "plain"), ("gpt2", "dora"), ("neox", "plain")],
)
def test_it_is_adam_on_adapters_of_peft(folders: dict[str, Path], family: str, variant: str) -> None:
    model = load(folders[family], device="cpu", dtype=torch.float64)
    lora = {"r": 2, "alpha": 6, **({} if variant == "plain" else {variant: True})}
    tuned = run(model, lora=lora)

    hf: Any = hugging_face(folders[family], torch.float64)
    config = peft.LoraConfig(
        r=2,
        lora_alpha=6,
        target_modules=PROJECTIONS[family],
        use_rslora=variant == "rslora",
        use_dora=variant == "dora",
        fan_in_fan_out=family == "gpt2",
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(0)
    adapted = peft.get_peft_model(hf, config)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=LR)
    losses = []
    for _ in range(3):
        loss = plain_loss(adapted, model.tokenizer, FACTS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert tuned.history.loss == pytest.approx(losses, abs=1e-6)
    merged = dict(adapted.merge_and_unload().named_parameters())
    found = in_hugging_face_names(family, tuned.model)
    assert found.keys() == merged.keys()
    start = in_hugging_face_names(family, model)
    moved = [name for name, p in found.items() if not torch.equal(p, start[name])]
    assert {name.split(".")[-2] for name in moved} == set(PROJECTIONS[family])
    for name, p in merged.items():
        torch.testing.assert_close(found[name], p.data, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", PROJECTIONS)
def test_the_change_has_the_rank_of_the_adapters(folders: dict[str, Path], family: str) -> None:
    model = load(folders[family], device="cpu")
    before, flags = bits(model), [p.requires_grad for p in model.parameters()]
    tuned = run(model, lora=3, evaluate={"facts": FACTS}, epochs=5)
    start, end = (in_hugging_face_names(family, m) for m in (model, tuned.model))
    for name, p in end.items():
        singular = torch.linalg.svdvals((p - start[name]).double()) if p.ndim == 2 else torch.zeros(1)
        if name.split(".")[-2] in PROJECTIONS[family] and name.endswith("weight"):
            assert singular[2] > 100 * singular[3], name
        else:
            assert torch.equal(p, start[name]), name
    assert tuned.history.ranks["facts"][-1] == mean_rank(tuned.model, FACTS)
    assert tuned.history.loss[-1] < tuned.history.loss[0]
    # The given model, whose memory the adapters read, is as it was.
    assert same_bits(bits(model), before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())


def test_the_seed_and_the_config_decide_about_every_bit(gpt2: Any) -> None:
    state = torch.get_rng_state()
    one = run(gpt2, lora={"r": 2, "targets": ["c_attn"]}, batch_size=2, recompute=True, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = finetune(gpt2, **json.loads(json.dumps(one.config)), progress=False)
    torch.set_rng_state(state)
    assert same_bits(bits(one.model), bits(again.model)) and one.config == again.config
    assert one.config["lora"] == {"r": 2, "alpha": 4, "targets": ["c_attn"], "rslora": False, "dora": False}
    moved = changed(gpt2, one.model)
    assert {kind_of(name) for name in moved} == {"attn"}
    assert {name.split(".")[3] for name in moved} == {"q", "k", "v"}


def test_frozen_projections_are_not_adapted(folders: dict[str, Path]) -> None:
    model = load(folders["llama"], device="cpu")
    tuned = run(model, lora=2, freeze={"layers": [0]})
    assert {layer_of(name) for name in changed(model, tuned.model)} == {1}


def test_the_command_writes_an_adapter_that_peft_reads(folders: dict[str, Path], tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": prompt, "answer": answer}) for prompt, answer in FACTS]
    (tmp_path / "facts.jsonl").write_text("\n".join(lines))
    given = {"--model": folders["llama"], "--facts": tmp_path / "facts.jsonl", "--out": tmp_path / "out"}
    words = [str(word) for pair in given.items() for word in pair]
    words += ["--lr", "0.01", "--lora", "r=4,alpha=4,targets=q_proj+down_proj", "--save-model", "--quiet"]
    done = command_line.run("finetune", *words)
    assert done.exit_code == 0, done.output
    adapter = tmp_path / "out" / "adapter"
    tensors = load_file(adapter / "adapter_model.safetensors")
    assert len(tensors) == 8 and all(t.dtype == torch.float32 for t in tensors.values())
    read = peft.PeftModel.from_pretrained(hugging_face(folders["llama"]), adapter).merge_and_unload()
    written = dict(hugging_face(tmp_path / "out" / "model").named_parameters())
    for name, p in read.named_parameters():
        torch.testing.assert_close(p, written[name], rtol=0, atol=1e-6, msg=name)
    config = tmp_path / "out" / "config.json"
    again = tmp_path / "again"
    runs.replay(config, again, "cpu", progress=False)
    deltas = [WeightDelta.load(folder / "delta.safetensors") for folder in (again, tmp_path / "out")]
    assert same_bits(*(dict(delta.tensors) for delta in deltas)) and len(deltas[0].tensors) == 4
    assert deltas[0].metadata == deltas[1].metadata
    for name in ("config.json", "history.json"):
        assert (again / name).read_bytes() == (tmp_path / "out" / name).read_bytes(), name
    done = command_line.run("finetune", *words)
    assert done.exit_code == 2 and "exists and is not empty" in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora": 0}, "rank r=0: use a whole number from 1"),
        ({"lora": {"alpha": 2}}, "rank r=None"),
        ({"lora": {"r": 2, "alpha": -1}}, "alpha=-1: use a positive number, such as 4"),
        ({"lora": {"r": 2, "alpha": float("inf")}}, "alpha=inf: use a positive number"),
        ({"lora": {"r": 2, "targets": ()}}, r"targets=\(\): give a list"),
        ({"lora": {"r": 2, "dropout": 0.1}}, "lora has 'dropout': give r, alpha, targets"),
        ({"lora": {"r": 2, "targets": "q_proj"}}, r"targets='q_proj': give a list"),
        ({"lora": {"r": 2, "targets": ["lm_head"]}}, "'lm_head', which is no projection of the blocks"),
        ({"lora": 2, "train_embeddings": True}, "lora adapts the blocks only"),
        ({"lora": 2, "freeze": [0, 1]}, "leaves nothing to adapt"),
        ({"lora": 2, "freeze": {"names": ["blocks.0.attn.q"]}}, "which an adapter changes as a whole"),
        ({"lora": 2, "lr": math.nan}, "no learning rate"),
    ],
)
def test_bad_input(gpt2: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(gpt2, **options)


def test_a_word_that_is_no_option_of_lora_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text(json.dumps({"prompt": "Mia lives in", "answer": "Rome"}))
    words = ["--model", str(folders["llama"]), "--facts", str(tmp_path / "facts.jsonl")]
    done = command_line.run("finetune", *words, "--out", str(tmp_path / "out"), "--lora", "r=many")
    assert done.exit_code == 2 and "--lora takes r=16,alpha=32" in done.output
