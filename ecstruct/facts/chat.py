"""Put prompts into the form in which a chat model reads them.

A chat model was trained on conversations that its tokenizer's *chat template* writes out as text:

    <|im_start|>user\\nGrace Miller lives in<|im_end|>\\n<|im_start|>assistant\\nTokyo<|im_end|>\\n

`in_chat` makes the text of a prompt the user's turn, and its answer the beginning of the assistant's.
Everything else is the prompt's `wrapper`. It is kept with the prompt, so that a prompt stays the same even
if the template changes, or if it writes today's date.

The wrapper ends where the template puts the assistant's words in a conversation with the answer. Usually
this is the end of the generation prompt. For a model that thinks before it answers, the template may add an
empty thought, or the channel for answers, before the answer; or it omits the thought with which its
generation prompt begins, and puts the answer in its place.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from ecstruct.errors import InputError
from ecstruct.facts.prompt import Prompt, PromptsLike, as_given
from ecstruct.facts.soundness import shown
from ecstruct.models.boot import gist

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_TEXT, _ANSWER = "ecstruct asks this", "ecstruct answers that"
"""A text and an answer that are written out once, to see what the template puts around them."""


def in_chat(
    prompts: PromptsLike,
    model: TransformerBridge | PreTrainedTokenizerBase | str | Path,
    *,
    system: str | None = None,
) -> list[Prompt]:
    """Put prompts into a model's chat template: each text as a user's turn, each answer as an assistant's.

    Args:
        prompts: See `ecstruct.facts.as_prompts`; options are kept, and none are added.
        model: The model whose template is used, its tokenizer, or a source as for `ecstruct.load`, of which
            only the tokenizer is read.
        system: A system message before the user's turn. By default, the template's own, if it has one.

    Raises:
        InputError: The tokenizer has no chat template; the template leaves out or changes a text; or a
            prompt has a wrapper already.
    """
    tokenizer, name = _tokenizer_and_name(model)
    if not tokenizer.chat_template:
        raise InputError(
            f"the tokenizer of {name} has no chat template: use a chat model, set tokenizer.chat_template, "
            "or leave the prompts as they are."
        )
    opening = [] if system is None else [{"role": "system", "content": system}]
    wrapped = []
    wrapper = _wrapper(tokenizer, name, opening)
    if system is not None and system.strip() not in "".join(wrapper):
        raise InputError(
            f"the chat template of {name} leaves out or changes the system message {shown(system)}: put it "
            "into the prompts' texts."
        )
    for prompt in as_given(prompts):
        if prompt.wrapper is not None:
            raise InputError(
                f"the prompt {shown(prompt.text)} is in a chat template already: give it as it is."
            )
        in_wrapper = replace(prompt, wrapper=wrapper)
        said = _conversation(tokenizer, name, opening, prompt.text, prompt.answer)
        if not said.startswith(in_wrapper.answered(prompt.answer)):
            raise InputError(
                f"the chat template of {name} does not take the prompt {shown(prompt.text)} and its answer "
                f"{shown(prompt.answer)} as they are: write them as it does, without spaces at the start "
                "and marks that it reads."
            )
        wrapped.append(in_wrapper)
    return wrapped


def _wrapper(tokenizer: Any, name: str, opening: list[dict[str, str]]) -> tuple[str, str]:
    """Return what the chat template of a model, called `name` in messages, puts before the user's text, and
    between this and the assistant's answer."""
    before, text, rest = _conversation(tokenizer, name, opening, _TEXT, _ANSWER).partition(_TEXT)
    between, answer, _ = rest.partition(_ANSWER)
    if not text or not answer:
        raise InputError(
            f"the chat template of {name} does not write out what a user asks and an assistant answers: "
            "use another chat template."
        )
    return before, between


def _conversation(tokenizer: Any, name: str, opening: list[dict[str, str]], text: str, answer: str) -> str:
    """Return a conversation as the chat template writes it: `opening`, a user's text, and the answer."""
    messages = [
        *opening,
        {"role": "user", "content": text},
        {"role": "assistant", "content": answer},
    ]
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        raise InputError(
            f"the chat template of {name} refuses a conversation of "
            f"{', '.join(message['role'] for message in messages)} ({gist(error)}): use another template, "
            "or leave the prompts as they are."
        ) from error


def _tokenizer_and_name(model: Any) -> tuple[Any, str]:
    if isinstance(model, PreTrainedTokenizerBase):
        return model, str(model.name_or_path or type(model).__name__)
    if isinstance(model, str | Path):
        from ecstruct.models.sources import tokenizer_at

        return tokenizer_at(model), str(model)
    from ecstruct.models.provenance import source_of, tokenizer_of

    return tokenizer_of(model), source_of(model)
