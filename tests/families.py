"""Tiny random models of decoder families, all sharing `tiny-random`'s tokenizer; what each is made of."""

import functools

import torch
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from steer_heal.model import LM
from steer_heal.model.tiny import tiny_tokenizer

FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gemma3", "gpt2", "gpt_neox")
"""On which every stage is compared with naive formulas, in the whole suite."""
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "sliding_window": 64,
    "vocab_size": 480, "bos_token_id": 1, "eos_token_id": 3, "pad_token_id": 0,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "moe_num_experts": 4, "num_experts_per_tok": 2,
    "moe_k": 2, "moe_topk": 2, "top_k_experts": 2, "n_shared_experts": 1, "num_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "expert_ffn_hidden_size": 16,
    "first_k_dense_replace": 1, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 4,
    "v_head_dim": 8, "state_size": 8, "mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_expand": 2,
    "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 1, "chunk_size": 16,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "lru_width": 32, "tie_word_embeddings": True,
}  # fmt: skip
"""Sizes by the names that configurations give them; a family takes those that it knows."""
OWN: dict[str, dict[str, object]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 8},
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 2.5},
    "gpt2": {"n_inner": 64},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "gptj": {"rotary_dim": 8},
    "recurrent_gemma": {"logits_soft_cap": 3.0},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}
"""What a family needs otherwise."""


@functools.cache
def tokenizer():
    """One for all; nothing changes it."""
    return tiny_tokenizer()


def make(family: str) -> LM:
    """A model of one family with four blocks of width 32, its weights drawn from seed 0."""
    torch.manual_seed(0)
    if family == "gemma3":
        text = {name: SMALL[name] for name in text_names("gemma3_text")}
        vision = {
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2,
            "image_size": 28, "patch_size": 14,
        }  # fmt: skip
        config = Gemma3Config(
            text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=5,
            boi_token_index=6, eoi_token_index=7, bos_token_id=1, eos_token_id=3, pad_token_id=0,
        )  # fmt: skip
        model = Gemma3ForConditionalGeneration(config)
    else:
        sizes = {name: SMALL[name] for name in text_names(family)}
        model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**sizes | OWN.get(family, {})))
    # Random logits that differ clearly, so that a wrong position or row shows.
    with torch.no_grad():
        model.get_input_embeddings().weight.normal_(0, 0.5)
    return LM(model.eval(), tokenizer(), family)


def text_names(family: str) -> list[str]:
    """The names of `SMALL` that a family's configuration knows."""
    kind = CONFIG_MAPPING[family]
    return [name for name in SMALL if name in kind.__dataclass_fields__ or name in kind.attribute_map]
