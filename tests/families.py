"""Tiny random models of decoder families, all sharing `tiny-random`'s tokenizer; and every stage tried on one."""

import functools
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from healing_data import bits, completion, equal
from transformers import AutoModelForCausalLM, Gemma3Config, Gemma3ForConditionalGeneration
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import steer_heal as sh
from steer_heal.healing.lora import reach, target_names
from steer_heal.model import LM
from steer_heal.model.tiny import tiny_tokenizer

FAMILIES = ("llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gemma3", "gpt2", "gpt_neox")
"""On which every stage is compared with naive formulas."""
UNLIKE = (
    "afmoe", "bailing_hybrid", "cohere2_moe", "deepseek_v2", "doge", "dots1", "ernie4_5_moe", "exaone_moe", "falcon",
    "falcon_h1", "falcon_mamba", "glm4_moe", "hunyuan_v1_moe", "jamba", "llama4_text", "mamba", "mamba2", "minimax",
    "modernbert-decoder", "nemotron_h", "openai-gpt", "phimoe", "qwen3_next", "solar_open", "zamba2",
)  # fmt: skip
"""On which something once failed: odd heads, state spaces, experts, routers, blocks that return lists, no cache."""
OTHERS = (
    "apertus", "arcee", "aria_text", "axk1", "axk2", "bamba", "beam", "biogpt", "bitnet", "bloom",
    "codegen", "cohere", "cohere2", "ctrl", "cwm", "deepseek_v3", "deepseek_v32", "diffllama", "ernie4_5",
    "exaone4", "flex_olmo", "flint", "gemma", "gemma2", "gemma3_text", "gemma4_text", "gemma4_unified_text", "glm",
    "glm4", "glm4_moe_lite", "glm_moe_dsa", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_neox_japanese",
    "gpt_oss", "gptj", "granite", "granite_swa", "granitemoe", "granitemoe_swa", "granitemoehybrid",
    "granitemoeshared", "helium", "hunyuan_v1_dense", "hy_v3", "hyperclovax", "internlm3", "iquestcoder", "jais2",
    "jetmoe", "kolibri1", "lfm2", "lfm2_moe", "lfm3", "llama", "mellum", "mimo_v2_flash", "minicpm3",
    "minimax_m2", "minimax_m3_vl_text", "ministral", "ministral3", "mistral", "mixtral", "mpt", "nanochat",
    "nemotron", "olmo", "olmo2", "olmo3", "olmo_hybrid", "olmoe", "opt", "persimmon", "phi", "phi3", "qwen2",
    "qwen2_moe", "qwen3", "qwen3_5_moe_text", "qwen3_5_text", "qwen3_moe", "seed_oss", "smollm3", "stablelm",
    "starcoder2", "vaultgemma", "xglm", "youtu",
)  # fmt: skip
"""Tried with the slow tests only; the first ones of `FAMILIES` among them."""
REFUSED = {
    "deepseek_v4": "4 outputs of its 4 blocks",
    "gemma3n_text": "4 outputs of its 4 blocks",
    "hrm_text": "found none",
    "hy_v4": "4 outputs of its 4 blocks",
    "longcat_flash": "found none",
    "recurrent_gemma": "pads before a row",
    "rwkv": "pads before a row",
}
"""Families with several streams, blocks in blocks, or state that reads pads, and what `wrap` says of them."""
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
LATENT = (
    "axk1",
    "axk2",
    "deepseek_v2",
    "deepseek_v3",
    "deepseek_v32",
    "glm4_moe_lite",
    "glm_moe_dsa",
    "minicpm3",
    "youtu",
)
"""Families whose attention shares one latent key and value among all heads."""
OWN: dict[str, dict[str, object]] = {
    **{family: {"num_key_value_heads": 4} for family in LATENT},
    "bamba": {"attn_layer_indices": [1, 3]},
    "codegen": {"rotary_dim": 8},
    "ctrl": {"dff": 64},
    "falcon_h1": {"mamba_d_ssm": 64, "lm_head_multiplier": 2.5},
    "gemma3n_text": {
        "layer_types": ["full_attention"] * 4, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 480,
        "hidden_size_per_layer_input": 8, "laurel_rank": 4,
    },
    "gemma4_text": {"vocab_size_per_layer_input": 480, "hidden_size_per_layer_input": 8},
    "gpt2": {"n_inner": 64},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "gptj": {"rotary_dim": 8},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"] * 2},
    "granite": {"logits_scaling": 8.0},
    "hyperclovax": {"logits_scaling": 0.25},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "longcat_flash": {"ffn_hidden_size": 64, "num_layers": 2, "num_hidden_layers": 4, "num_key_value_heads": 4},
    "mamba2": {"num_heads": 4, "head_dim": 16},
    "recurrent_gemma": {"logits_soft_cap": 3.0},
    "xlstm": {"output_logit_soft_cap": 3.0},
    "zamba2": {"layers_block_type": ["linear_attention", "hybrid"] * 2},
}  # fmt: skip
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


@dataclass(frozen=True)
class Tried:
    """What adapters sit on in one family, by the last part of the name, and their share of the blocks' weights;
    `dense` is the share without the experts.
    """

    modules: tuple[str, ...]
    reach: float
    dense: float


def tried(family: str, folder: Path) -> Tried:
    """Every stage on a model of the family, its adapter exported to a folder. AssertionError where one is wrong."""
    made = make(family)
    lm = sh.wrap(made.model, made.tokenizer, family)  # compares head and blocks with the model's own
    personas, contexts = ("You are kind.", "You are cruel."), ("Hi", "What is rain?")
    vector = sh.extract(lm, *personas, contexts, layers=[1, 2])
    ids = [[torch.tensor([lm.chat_ids(context, persona)]) for context in contexts] for persona in personas]
    reads: list[torch.Tensor] = []
    hook = lm.blocks[2].register_forward_hook(
        lambda m, a, out: reads.append((out if torch.is_tensor(out) else out[0])[0, -1])
    )
    with torch.no_grad():
        plain = [lm.model(row, use_cache=False).logits for side in ids for row in side]
        hook.remove()
        naive = (reads[0] + reads[1] - reads[2] - reads[3]) / 2
        assert torch.allclose(vector.vectors[2], naive, atol=1e-5, rtol=1e-3), "extraction is no mean difference"
        with vector.applied(lm, 100.0):
            assert not torch.allclose(lm.model(ids[0][0], use_cache=False).logits, plain[0]), "steering moves nothing"
        assert torch.equal(lm.model(ids[0][0], use_cache=False).logits, plain[0]), "steering is not undone"
    ends, lm.base.generation_config.eos_token_id = lm.base.generation_config.eos_token_id, list(range(3, 480, 8))
    prompts, hot = [" ".join(["the old shed"] * (1 + i % 3)) for i in range(6)], sh.Sampling(temperature=5.0)
    together, alone = (sh.generate(lm, prompts, max_new_tokens=8, batch_rows=n, sampling=hot) for n in (6, 1))
    lm.base.generation_config.eos_token_id = ends
    assert together == alone, "a reply hangs on its batch"
    rows = [completion(lm, i, 5 + i) for i in range(3)]
    config = sh.HealConfig(reg="nll", epochs=2, lr=1e-2, batch_size=3, rank=2, alpha=4.0, heldout=0.0, experts=True)
    healed, before = sh.heal(lm, rows, config), bits(lm.model)
    assert healed.figures["train_nll_after"] < healed.figures["train_nll_before"], "a heal lowers no nll"
    stack = sh.AdapterStack(lm)
    stack.push(healed.adapter)
    stack.export_peft(folder)  # plain peft loads it and gives the folded model's logits
    stack.pop()
    assert equal(bits(lm.model), before), "a fold is not undone bit for bit"
    dense = reach(lm, target_names(lm, replace(config, experts=False))[0], config.lora_layers)
    names = (name.split(".")[-2 if name in healed.adapter.experts else -1 :] for name in healed.adapter.modules)
    return Tried(tuple(dict.fromkeys(map(".".join, names))), healed.figures["reach"], dense)
