"""The oracle of finetuning: a plain training loop on the Hugging Face model, and its weights by name."""

import torch
from torch.nn.functional import cross_entropy

from ecstruct.models.bridge import named_weights
from ecstruct.models.names import layer_of

LR = 1e-2


def plain_loss(hf, tokenizer, facts):
    """Sum the loss over unpadded prompts, one by one, then divide it by the number of all answer tokens."""
    total, n = torch.zeros((), dtype=torch.float64), 0
    for text, answer in facts:
        n_prompt = len(tokenizer(text)["input_ids"])
        ids = torch.tensor([tokenizer(f"{text} {answer}")["input_ids"]])
        logits = hf(ids).logits[0, n_prompt - 1 : -1]
        total = total + cross_entropy(logits, ids[0, n_prompt:], reduction="sum")
        n += ids.shape[1] - n_prompt
    return total / n


def plain_training(hf, tokenizer, batches, trained, factor=lambda step: 1.0):
    parameters = [p for name, p in hf.named_parameters() if trained(name)]
    optimizer = torch.optim.Adam(parameters, lr=LR)
    losses = []
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = LR * factor(step)
        loss = plain_loss(hf, tokenizer, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def bits(model):
    return {name: p.detach().clone() for name, p in named_weights(model).items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def changed(model, tuned):
    before, after = bits(model), bits(tuned)
    return {name for name in before if not torch.equal(before[name], after[name])}


# TransformerLens's names of weights, in the names of each checkpoint; {} is the layer.
HF_NAMES = {
    "llama": {
        "embed": "model.embed_tokens",
        "unembed": "lm_head",
        "ln_final": "model.norm",
        "attn.q": "model.layers.{}.self_attn.q_proj",
        "attn.k": "model.layers.{}.self_attn.k_proj",
        "attn.v": "model.layers.{}.self_attn.v_proj",
        "attn.o": "model.layers.{}.self_attn.o_proj",
        "mlp.gate": "model.layers.{}.mlp.gate_proj",
        "mlp.in": "model.layers.{}.mlp.up_proj",
        "mlp.out": "model.layers.{}.mlp.down_proj",
        "ln1": "model.layers.{}.input_layernorm",
        "ln2": "model.layers.{}.post_attention_layernorm",
    },
    "gpt2": {
        "embed": "transformer.wte",
        "pos_embed": "transformer.wpe",
        "unembed": "lm_head",
        "ln_final": "transformer.ln_f",
        "attn.qkv": "transformer.h.{}.attn.c_attn",
        "attn.o": "transformer.h.{}.attn.c_proj",
        "mlp.in": "transformer.h.{}.mlp.c_fc",
        "mlp.out": "transformer.h.{}.mlp.c_proj",
        "ln1": "transformer.h.{}.ln_1",
        "ln2": "transformer.h.{}.ln_2",
    },
    "neox": {
        "embed": "gpt_neox.embed_in",
        "unembed": "lm_head",
        "ln_final": "gpt_neox.final_layer_norm",
        "attn.qkv": "gpt_neox.layers.{}.attention.query_key_value",
        "attn.o": "gpt_neox.layers.{}.attention.dense",
        "mlp.in": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
        "mlp.out": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
        "ln1": "gpt_neox.layers.{}.input_layernorm",
        "ln2": "gpt_neox.layers.{}.post_attention_layernorm",
    },
}


OUTSIDE = ("embed", "pos_embed", "unembed")


def fuse(family, q, k, v):
    if family == "gpt2":  # GPT-2's weights are [d_in, d_out]
        return torch.cat([part.movedim(0, -1) for part in (q, k, v)], dim=-1)
    by_head = [part.unflatten(0, (4, -1)) for part in (q, k, v)]
    return torch.cat(by_head, dim=1).flatten(0, 1)


def in_hugging_face_names(family, model):
    """Return the weights of a hooked model by the names and in the shapes of the Hugging Face model."""
    weights = bits(model)
    if family != "llama":
        for layer in range(2):
            for kind in ("weight", "bias"):
                parts = [weights.pop(f"blocks.{layer}.attn.{c}.{kind}") for c in "qkv"]
                weights[f"blocks.{layer}.attn.qkv.{kind}"] = fuse(family, *parts)
    renamed = {}
    for name, p in weights.items():
        component, kind = name.rsplit(".", 1)
        component = component.split(".", 2)[2] if layer_of(name) is not None else component
        renamed[f"{HF_NAMES[family][component].format(layer_of(name))}.{kind}"] = p
    return renamed


def is_embedding(family, hf_name):
    return hf_name.rpartition(".")[0] in [HF_NAMES[family].get(name) for name in OUTSIDE]
