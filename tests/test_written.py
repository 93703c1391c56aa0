"""What changes write and what heads read, in words: against plain models and their own heads."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.oracle import blocks, first_ids, ids_of
from helpers.tiny import D_HEAD, N_HEADS, PROMPTS, double_throughout, hooked_pair, plain_pair, tokenizer
from torch import Tensor
from torch.autograd.functional import jvp
from transformers import PreTrainedModel

import ecstruct
from ecstruct import ExtractiveScores, InputError, Words, read_words, score, written_words

FAMILIES = ("llama", "gpt2", "gemma2")


def seen(plain: PreTrainedModel, ids: Tensor) -> tuple[list[dict[str, Tensor]], Tensor]:
    """What the MLP and every head of each block write, and what enters the final norm."""
    found: list[dict[str, Tensor]] = []
    handles = []
    for block in blocks(plain):
        of_block: dict[str, Tensor] = {}
        found.append(of_block)

        def mlp(_module: Any, _args: Any, output: Tensor, to: dict = of_block) -> None:
            to["mlp"] = output[0]

        def heads(module: Any, args: Any, _output: Tensor, to: dict = of_block) -> None:
            z = args[0][0].view(-1, N_HEADS, D_HEAD)
            weight = module.weight if isinstance(module, torch.nn.Linear) else module.weight.T
            by_head = weight.view(-1, N_HEADS, D_HEAD)
            to["heads"] = torch.einsum("phd,mhd->phm", z, by_head)

        handles += [block.out.register_forward_hook(mlp), block.o.register_forward_hook(heads)]
    final = {}
    norm = plain.transformer.ln_f if plain.config.model_type == "gpt2" else plain.model.norm
    handles.append(norm.register_forward_pre_hook(lambda _m, args: final.update(resid=args[0][0])))
    with torch.no_grad(), double_throughout():
        plain(ids)
    for handle in handles:
        handle.remove()
    return found, final["resid"]


def head_of(plain: PreTrainedModel, resid: Tensor) -> Tensor:
    norm = plain.transformer.ln_f if plain.config.model_type == "gpt2" else plain.model.norm
    logits = plain.lm_head(norm(resid))
    cap = getattr(plain.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


@pytest.mark.parametrize("kind", ["informative", "downstream"])
@pytest.mark.parametrize("family", FAMILIES)
def test_words_and_ranks_are_those_of_plain_models(family, kind):
    before, after = plain_pair(family)
    with double_throughout():
        scores = score(*hooked_pair(family), PROMPTS, progress=False)
        found = written_words(*hooked_pair(family), PROMPTS, scores, score=kind, n=6, top=3).frame
    top = scores.top(6, kind)
    assert len(found) == 6 * len(PROMPTS)
    for (_, component), (_, rows) in zip(
        top.iterrows(), found.groupby("component", sort=False), strict=True
    ):
        layer, head = component["layer"], component["head"]
        for i, (prompt, (_, row)) in enumerate(zip(PROMPTS, rows.iterrows(), strict=True)):
            ids = ids_of(prompt)
            (old, resid), (new, _) = seen(before, ids), seen(after, ids)
            if component["kind"] == "mlp":
                of_token = scores.mlp.sel(score=kind, prompt=i, layer=layer)
                change = new[layer]["mlp"] - old[layer]["mlp"]
            else:
                of_token = scores.heads.sel(score=kind, prompt=i, layer=layer, head=head)
                change = (new[layer]["heads"] - old[layer]["heads"])[:, head]
            at = int(np.nanargmax(of_token.values))
            with double_throughout():
                _, logits = jvp(lambda x: head_of(before, x), resid[at], change[at])
            options, answer = logits[first_ids(prompt)], prompt.options.index(prompt.answer)
            assert row["rank"] == int((options > options[answer]).sum())
            assert row["words"] == [tokenizer().decode([int(k)]).strip() for k in logits.topk(3).indices]
            assert (row["text"], row["answer"]) == (prompt.text, prompt.answer)


def test_tokens_of_the_answer_are_not_read():
    pair, options = hooked_pair("gpt2"), {"reward": "logprob", "answer_tokens": "all", "baseline": "mean"}
    scores = score(*pair, PROMPTS, progress=False, **options)
    found = written_words(*pair, PROMPTS, scores, n=15).frame
    assert all(row["token"] in ["<bos>", *row["text"].split()] for _, row in found.iterrows())


def test_the_table_and_what_it_says():
    rows = [
        ("MLP 1", "a", "x", "t", 0.0, ["x", "y"]),
        ("MLP 1", "b", "y", "t", 2.0, ["z"]),
        ("head 0.1", "a", "x", "u", 1.0, ["q"]),
        ("head 0.1", "b", "y", "t", 0.5, ["p", "r"]),
    ]
    columns = ["component", "text", "answer", "token", "rank", "words"]
    words = Words(pd.DataFrame(rows, columns=columns), 1.5)
    table = words.table()
    assert table["component"].tolist() == ["MLP 1", "head 0.1"]
    assert table["mean rank"].tolist() == [1.0, 0.75] and table["answer first"].tolist() == [0.5, 0.0]
    assert table["for example"].tolist() == ["a (x)", "b (y)"] and table["words"].tolist() == [
        "x, y",
        "p, r",
    ]
    assert words.conclusion() == (
        "Mean rank of the answer among its options by what the changes write (chance is 1.50): MLP 1 1.00, "
        "head 0.1 0.75."
    )


def test_bad_input():
    pair = hooked_pair("gpt2")
    scores = score(*pair, PROMPTS, progress=False)
    with pytest.raises(InputError, match="the scores are of other prompts"):
        written_words(*pair, PROMPTS[:2], scores)
    with pytest.raises(InputError, match="n=0 components cannot be listed"):
        written_words(*pair, PROMPTS, scores, n=0)
    with pytest.raises(InputError, match="top=0 words say nothing"):
        written_words(*pair, PROMPTS, scores, top=0)
    with pytest.raises(InputError, match="of 3 layers of 3 heads, but this model has 3 of 4"):
        written_words(*pair, PROMPTS, ExtractiveScores(scores.dataset.isel(head=slice(3))))
    with pytest.raises(InputError, match="not by token"):
        written_words(*pair, PROMPTS, ecstruct.causal_scores(*pair, PROMPTS, progress=False))


# --- What heads read ---


def looked_at(plain: PreTrainedModel, ids: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """By layer, the attention [head, token, token], the heads' values by token [head, token, d_model] as
    they are written, and what enters the layer [token, d_model]."""
    found, handles, values, entering = [], [], {}, {}
    for layer, block in enumerate(blocks(plain)):

        def see_values(_m: Any, _args: Any, output: Tensor, at: int = layer) -> None:
            values[at] = output[0]

        def see_entering(_m: Any, args: Any, at: int = layer) -> None:
            entering[at] = args[0][0]

        handles += [block.qkv[-1].register_forward_hook(see_values)]
        handles += [block.ln1.register_forward_pre_hook(see_entering)]
    with torch.no_grad(), double_throughout():
        attentions = plain(ids, output_attentions=True).attentions
    for handle in handles:
        handle.remove()
    for layer, block in enumerate(blocks(plain)):
        width = values[layer].shape[-1] // (3 if plain.config.model_type == "gpt2" else 1)
        of_kv = values[layer][:, -width:].view(len(ids[0]), -1, D_HEAD)
        weight = block.o.weight if isinstance(block.o, torch.nn.Linear) else block.o.weight.T
        by_head = weight.view(-1, N_HEADS, D_HEAD)
        v = of_kv.repeat_interleave(N_HEADS // of_kv.shape[1], 1)
        found.append((attentions[layer][0], torch.einsum("phd,mhd->hpm", v, by_head), entering[layer]))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_what_heads_read_is_what_plain_models_show(family):
    before, after = plain_pair(family)
    with double_throughout():
        scores = score(*hooked_pair(family), PROMPTS, progress=False)
        words = read_words(*hooked_pair(family), PROMPTS, scores, n=4, top=3)
    top = scores.top(4, "downstream", "head")
    groups = words.frame.groupby("component", sort=False)
    for (_, component), (name, rows) in zip(top.iterrows(), groups, strict=True):
        layer, head = component["layer"], component["head"]
        assert name == f"head {layer}.{head}"
        for i, (prompt, (_, row)) in enumerate(zip(PROMPTS, rows.iterrows(), strict=True)):
            ids = ids_of(prompt)
            of_token = scores.heads.sel(score="downstream", prompt=i, layer=layer, head=head)
            t = int(np.nanargmax(of_token.values))
            (a, v, x), (a_new, v_new, x_new) = (looked_at(plain, ids)[layer] for plain in (before, after))
            parts = [its[head, t, :, None] * values[head] for its, values in ((a, v), (a_new, v_new))]
            written = seen(before, ids)[0][layer]["heads"][t, head]
            torch.testing.assert_close(parts[0].sum(0), written, rtol=0, atol=1e-12)
            s = int((parts[1] - parts[0]).norm(dim=-1).argmax())
            tokens = ["<bos>", *prompt.text.split()]
            assert (row["at"], row["token"]) == (tokens[t], tokens[s])
            assert row["attention before"] == pytest.approx(float(a[head, t, s]), abs=1e-12)
            assert row["attention after"] == pytest.approx(float(a_new[head, t, s]), abs=1e-12)
            final = seen(before, ids)[1][t]
            changes = {"": (final, v_new[head, s] - v[head, s]), " there": (x[s], x_new[s] - x[s])}
            changes |= {" before": (final, v[head, s]), " after": (final, v_new[head, s])}
            for state, of in changes.items():
                with double_throughout():
                    _, logits = jvp(lambda r: head_of(before, r), *of)
                options, answer = logits[first_ids(prompt)], prompt.options.index(prompt.answer)
                assert row[f"rank{state}"] == int((options > options[answer]).sum())
                best = [tokenizer().decode([int(k)]).strip() for k in logits.topk(3).indices]
                assert row[f"words{state}"] == best
    table = words.table()
    means = words.frame.groupby("component", sort=False)[["attention before", "rank after"]].mean()
    np.testing.assert_allclose(table[["attention before", "rank after"]], means)
    assert {"words", "words before", "words after", "words there"} <= set(table.columns)
    assert "by what is new where heads read (chance is" in words.conclusion()


def test_bad_input_to_what_heads_read():
    pair = hooked_pair("gpt2")
    scores = score(*pair, PROMPTS, progress=False)
    with pytest.raises(InputError, match="the scores are of other prompts"):
        read_words(*pair, PROMPTS[:2], scores)
    with pytest.raises(InputError, match="top=0 words say nothing"):
        read_words(*pair, PROMPTS, scores, top=0)
