"""Chat templates of all common kinds, with tiny tokenizers and models that have them."""

from pathlib import Path
from typing import Any

from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from ecstruct.facts import Prompt
from helpers.facts_fixtures import CITIES, FACTS, byte_tokenizer
from helpers.folders import save_llama

CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen's template, which has a system message of its own."""

LLAMA3 = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}<|im_end|>\n\n"
    "{{ message.content | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_end|>\n\n{% endif %}"
)
"""Llama 3's template, which writes BOS itself and trims texts."""

LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}[INST] "
    "{{ message.content }} [/INST]{% elif message.role == 'assistant' %} {{ message.content }} "
    "{{ eos_token }}{% else %}{{ raise_exception('no system messages here') }}{% endif %}{% endfor %}"
)
"""Llama 2's template: words, not special tokens, a space before the answer; it refuses system messages."""

THINKING = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{% if message.role == 'assistant' %}"
    "<think>\n\n</think>\n\n{% endif %}{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Qwen 3's template, in which the answer follows a thought, which may be empty."""

ALWAYS_THINKING = (
    "{{ bos_token }}{% for message in messages %}<|im_start|>{{ message.role }}{{ message.content }}"
    "{% if message.role == 'assistant' %}<|eot|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<think>\n{% endif %}"
)
"""DeepSeek R1's template, which begins a thought for the model and leaves it out of earlier answers."""

ASKED = [
    *(Prompt(text, city, subject=text.removesuffix(" lives in"), template="city") for text, city in FACTS),
    Prompt("The assistant of Grace Miller says that Mia lives in", "Rome", subject="Mia", template="said"),
    Prompt("The assistant of Grace Miller says that Noah Clark lives in", "Paris", template="said"),
    Prompt("user", "Paris", template="one word", subject="user"),
]
"""Prompts of three templates, one with a word of the chat wrapper, one with a single prompt."""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "llama2": LLAMA2}
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|eot|>", "<think>", "</think>"]


def chat_tokenizer(template: str, *, adds_bos: bool = True) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with a BOS before all texts except those of chat templates."""
    words = " ".join(f"{text} {answer}" for text, answer in FACTS)
    tokenizer = byte_tokenizer(f"{words} {' '.join(CITIES)} user assistant system [INST] [/INST]")
    tokenizer.add_special_tokens({"bos_token": "<bos>", "additional_special_tokens": SPECIAL})
    if adds_bos:
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", tokenizer.bos_token_id)]
        )
    tokenizer.chat_template = template
    return tokenizer


def save_chat(folder: Path, template: str = CHATML, seed: int = 0) -> Path:
    """Save a random two-layer Llama with a chat template."""
    tokenizer: Any = chat_tokenizer(template)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    ends["pad_token_id"] = tokenizer.eos_token_id
    return save_llama(folder, tokenizer, seed, max_position_embeddings=96, **ends)


def said_by_template(tokenizer: PreTrainedTokenizerFast, *said: str, **options: Any) -> Any:
    """Return the ids that transformers makes of a conversation, which the user begins."""
    roles = ("user", "assistant")
    messages = [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]
    return tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False, **options)
