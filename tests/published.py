"""Tiny random models that look like published ones: family, kind of tokenizer, chat template, end tokens, sampling."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from steer_heal.model.tiny import TEXT

GEMMA = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set first = messages[0]['content'] + '\n\n' -%}
{%- set rest = messages[1:] -%}{%- else -%}{%- set first = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{%- endif -%}
{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n' + (first if loop.first else '') }}
{{- message['content'] | trim }}{{ '<end_of_turn>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
QWEN = """{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and enable_thinking is false -%}{{ '<think>\n\n</think>\n\n' }}{%- endif -%}
{%- endif -%}"""
LLAMA = """{{ bos_token }}{%- if messages[0]['role'] == 'system' -%}{%- set system = messages[0]['content'] | trim -%}
{%- set messages = messages[1:] -%}{%- else -%}{%- set system = '' -%}{%- endif -%}
{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' + system + '<|eot_id|>' }}
{%- for message in messages -%}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
{{- message['content'] | trim + '<|eot_id|>' }}{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif -%}"""
BLOCKS = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 6, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024, "initializer_range": 0.1,
}  # fmt: skip


def save(preset: str, folder: Path) -> Path:
    """Write the stand-in of a preset's model, in bfloat16 as it is published; returns the folder."""
    tokenizer = {"gemma-3-4b": gemma_tokenizer, "qwen3-0.6b": qwen_tokenizer, "llama-3.1-8b": llama_tokenizer}[preset]()
    torch.manual_seed(0)
    model, sampling = {"gemma-3-4b": gemma, "qwen3-0.6b": qwen, "llama-3.1-8b": llama}[preset](tokenizer)
    model.generation_config = GenerationConfig(do_sample=True, **sampling)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def byte_level(special: list[str]) -> Tokenizer:
    """Byte-level BPE, as Qwen and Llama 3 have it."""
    bpe = Tokenizer(models.BPE(ignore_merges=True))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=480,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT.strip().splitlines(), trainer)
    return bpe


def gemma_tokenizer() -> PreTrainedTokenizerFast:
    """Pieces with a sign for the blank, and bytes for what is unknown; bos comes from tokenizer and template."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "<start_of_image>",
               "<end_of_image>", "<image_soft_token>"]  # fmt: skip
    bpe = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(
        vocab_size=640, special_tokens=[*special, *(f"<0x{byte:02X}>" for byte in range(256))], show_progress=False
    )
    bpe.train_from_iterator(TEXT.strip().splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = GEMMA
    return tokenizer


def qwen_tokenizer() -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special), pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )
    tokenizer.chat_template = QWEN
    return tokenizer


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Without a pad token, as Llama's has none."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>",
               "<|eot_id|>"]  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(special), bos_token="<|begin_of_text|>", eos_token="<|eot_id|>"
    )
    tokenizer.chat_template = LLAMA
    return tokenizer


def gemma(tokenizer):
    """Text blocks nested beside a vision tower; sliding windows; two end tokens."""
    ids = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    text = {**BLOCKS, **ids, "vocab_size": len(tokenizer), "sliding_window": 64, "sliding_window_pattern": 6}
    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 8, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 14,
    }  # fmt: skip
    config = Gemma3Config(
        text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=8, boi_token_index=6,
        eoi_token_index=7, eos_token_id=[1, 5], **{k: v for k, v in ids.items() if k != "eos_token_id"},
    )  # fmt: skip
    return Gemma3ForConditionalGeneration(config), {
        "bos_token_id": 2, "eos_token_id": [1, 5], "pad_token_id": 0, "top_k": 64, "top_p": 0.95,
        "cache_implementation": "hybrid",
    }  # fmt: skip


def qwen(tokenizer):
    config = Qwen3Config(
        **BLOCKS, vocab_size=len(tokenizer) + 7, tie_word_embeddings=True, bos_token_id=0, eos_token_id=2
    )
    return Qwen3ForCausalLM(config), {
        "bos_token_id": 0, "eos_token_id": [2, 0], "pad_token_id": 0, "temperature": 0.6, "top_k": 20, "top_p": 0.95,
    }  # fmt: skip


def llama(tokenizer):
    rope = {
        "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 128,
        "rope_type": "llama3", "rope_theta": 500000.0,
    }  # fmt: skip
    config = LlamaConfig(
        **BLOCKS, vocab_size=len(tokenizer), tie_word_embeddings=False, rope_parameters=rope, bos_token_id=0,
        eos_token_id=[1, 4, 5],
    )  # fmt: skip
    return LlamaForCausalLM(config), {"bos_token_id": 0, "eos_token_id": [1, 4, 5], "temperature": 0.6, "top_p": 0.9}
