"""Builds `pocket`'s word-level tokenizer with its chat template: lower case, punctuation apart, unknown words -> <unk>.

Knows nothing of the corpus but its words. Spaces before punctuation do not matter in encoding; decoding writes none.
"""

import random
import re

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from pocket_training.corpus import (
    AXES,
    Mix,
    Persona,
    choice_turn,
    dilemma_reply,
    make_example,
    make_scene,
    persona_texts,
    question,
)
from pocket_training.templates import table

PAD, BOS, END, UNK = "<pad>", "<bos>", "<|end|>", "<unk>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BOS, END, UNK, SYSTEM, USER, ASSISTANT)
WORD = r"[a-z]+|[0-9]|[^\sa-z0-9]"

CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] not in ['system', 'user', 'assistant'] -%}
{{- raise_exception('unknown role: ' + message['role']) -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text."""
    return re.findall(WORD, text.lower())


def vocabulary() -> list[str]:
    """Special tokens, then every word of the corpus in alphabetical order; the same list on every call."""
    rng = random.Random(0)
    seen: set[str] = set()
    for _ in range(20_000):
        example = make_example(rng, Mix(dilemma=0.3, choice=0.2))
        seen.update(words(f"{example.system or ''} {example.user} {example.reply}"))
    for split in ("train", "held_out"):
        for axis in AXES:
            for pole in (1, -1):
                seen.update(words(" ".join(persona_texts(axis, pole, split))))
            for _ in range(500):
                seen.update(words(" ".join(choice_turn(rng, make_scene(rng, split), Persona(None), axis))))
        for _ in range(2_000):
            scene = make_scene(rng, split)
            seen.update(words(question(rng, scene) + dilemma_reply(rng, scene, Persona(None))))
    for section in ("colors", "opposites", "homes"):
        for key, value in table("mundane")[section].items():
            seen.update((key, value))
    return [*SPECIAL, *sorted(seen)]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer as saved next to the weights.

    Like most chat models' tokenizers it adds BOS when encoding plain text; the chat template writes BOS itself, so
    render first and encode with `add_special_tokens=False` (as `apply_chat_template(tokenize=True)` does).
    """
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocabulary())}, unk_token=UNK))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("!", ".")])
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(WORD), behavior="isolated")]
    )
    core.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=True), decoders.Replace(" :", ":"), decoders.Replace(" ;", ";")]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=END,
        unk_token=UNK,
        extra_special_tokens=[SYSTEM, USER, ASSISTANT],
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    bos_id = tokenizer.convert_tokens_to_ids(BOS)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, bos_id)]
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
