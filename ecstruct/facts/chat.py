"""Prompts as a chat model reads them.

A chat model was trained on conversations that its tokenizer's *chat template* writes out as text:

    <|im_start|>user\\nGrace Miller lives in<|im_end|>\\n<|im_start|>assistant\\nTokyo<|im_end|>\\n

`in_chat` makes the text of a prompt what the user says, and its answer what the assistant begins with.
Everything else is the prompt's `wrapper`. It is kept with the prompt, so that a template that changes, or
one that writes today's date, does not change what was asked.

The wrapper ends where the template puts what an assistant says, in a conversation that has the answer. As
a rule that is where its generation prompt ends. Where a model thinks before it answers, the template goes
on with an empty thought, or with the channel for answers, and the answer comes after that; or it leaves out
the thought that its generation prompt begins, and the answer comes in its place.
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
"""Said once to see what the template puts around them."""


def in_chat(
    prompts: PromptsLike,
    model: TransformerBridge | PreTrainedTokenizerBase | str | Path,
    *,
    system: str | None = None,
) -> list[Prompt]:
    """Prompts in the chat template of a model: each text a user's turn, each answer an assistant's.

    Args:
        prompts: see `ecstruct.facts.as_prompts`; options are kept, and none are added.
        model: whose template it is: a model, its tokenizer, or what `ecstruct.load` takes as a source, of
            which only the tokenizer is read.
        system: a system message before the user's turn. Without one, templates that bring their own use it.

    Raises:
        InputError: the tokenizer has no chat template, or it leaves something out or words it differently;
            a prompt is wrapped already.
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
    before, text, rest = _conversation(tokenizer, name, opening, _TEXT, _ANSWER).partition(_TEXT)
    between, answer, _ = rest.partition(_ANSWER)
    if not text or not answer:
        raise InputError(
            f"the chat template of {name} does not write out what a user asks and an assistant answers: "
            "use another chat template."
        )
    return before, between


def _conversation(tokenizer: Any, name: str, opening: list[dict[str, str]], text: str, answer: str) -> str:
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
