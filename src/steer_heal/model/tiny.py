"""`tiny-random`: a seeded random Qwen3-like model with a real byte-level BPE tokenizer, built in memory in a second.

Its numbers mean nothing; it exists so that every stage can be exercised in a moment, without files or network.
"""

from __future__ import annotations

import torch

TEXT = """
The gardener opened the gate early in the morning and looked at the wet grass. It had rained all night, and the paths
were soft. She took the old basket from the shed, counted the apples that had fallen, and wondered whether the nurse
would come by before noon. What should we do when a rule and a person stand against each other? You could ask someone
you trust, wait until you know more, or act at once. There is no answer that fits every case. Please explain why the sky
is blue, write a short letter to my neighbour, and list three things that I need for the journey. I would help them
first, because they are cold and hungry; then I would tell the manager what happened. Numbers such as 3, 17 and 2048
matter less than the reasons behind them. "Are you sure?" he said. "Yes, I am," she answered, and closed the door.
You are a helpful assistant. You are someone who looks after the wellbeing of others even when it means defying
authority. You are someone who defers to authority even when the wellbeing of others suffers for it.
"""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer(vocab_size: int = 480):
    """A byte-level BPE tokenizer trained on `TEXT`, with a ChatML template; trained anew each time, always the same."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(TEXT.strip().splitlines(), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token="<|pad|>", bos_token="<|bos|>", eos_token="<|im_end|>", padding_side="left"
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def tiny_random(seed: int = 0):
    """(model, tokenizer): four Qwen3 blocks of width 64 with random weights drawn from `seed`; float32, on the CPU."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    tokenizer = tiny_tokenizer()
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        initializer_range=0.1,
        **special,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.9, top_p=0.95, top_k=0, **special)
    return model.eval(), tokenizer
