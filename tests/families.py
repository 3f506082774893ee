"""Tiny random models of the common decoder families, all sharing `tiny-random`'s tokenizer."""

import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from steer_heal.model import LM
from steer_heal.model.tiny import tiny_tokenizer

FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gemma3", "gpt2", "gpt_neox")
SIZE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}


def make(family: str) -> LM:
    """A model of one family with four blocks of width 32."""
    tokenizer = tiny_tokenizer()
    ids = {"bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    if family == "gemma3":
        text = {**SIZE, **ids, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 64}
        vision = {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        }  # fmt: skip
        config = Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5,
            boi_token_index=6, eoi_token_index=7, bos_token_id=1, eos_token_id=3, pad_token_id=0,
        )  # fmt: skip
        model = Gemma3ForConditionalGeneration(config)
    elif family == "gpt2":
        config = CONFIG_MAPPING[family](n_embd=32, n_layer=4, n_head=4, n_positions=512, n_inner=64, **ids)
        model = AutoModelForCausalLM.from_config(config)
    else:
        more = {"num_key_value_heads": 2, "head_dim": 8} if family != "gpt_neox" else {}
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**SIZE, **ids, **more))
    # Random logits that differ clearly, so that a wrong position or row shows.
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 0.5)
    return LM(model.eval(), tokenizer, family)
