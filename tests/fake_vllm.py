"""A stand-in for vLLM: the part of it that the engine uses, answered by the folder's model, and what it was asked."""

from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import torch


class SamplingParams:
    def __init__(self, **given):
        vars(self).update(given)


class LLM:
    """With a seed tokens that follow from it, without one the most probable of the folder's model, as last read."""

    made: ClassVar[list["LLM"]] = []

    def __init__(self, model, **options):
        self.model, self.options, self.calls, self.reloaded = model, options, [], 0
        self.said = []
        self.model_config = SimpleNamespace(max_model_len=options["max_model_len"])
        self._read(model)
        LLM.made.append(self)

    def _read(self, weights_path):
        from transformers import AutoModelForCausalLM

        self.weights = AutoModelForCausalLM.from_pretrained(weights_path).eval()

    def collective_rpc(self, name, kwargs):
        assert name == "reload_weights"
        self.reloaded += 1
        self._read(**kwargs)

    @torch.no_grad()
    def generate(self, prompts, params, use_tqdm):
        self.calls.append((prompts, params))
        return [self._reply(**prompt, asked=one) for prompt, one in zip(prompts, params, strict=True)]

    def _reply(self, prompt_token_ids, asked):
        ids = list(prompt_token_ids)
        while len(ids) - len(prompt_token_ids) < asked.max_tokens:
            if asked.seed is None:
                ids.append(int(self.weights(torch.tensor([ids])).logits[0, -1].argmax()))
            else:
                ids.append((asked.seed + 7 * len(ids)) % 97)
            if ids[-1] in asked.stop_token_ids:
                break
        self.said.append(ids[len(prompt_token_ids) :])
        return SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids[len(prompt_token_ids) :])])


def module() -> ModuleType:
    """To be put in the place of `vllm`."""
    LLM.made.clear()
    found = ModuleType("vllm")
    found.__spec__ = ModuleSpec("vllm", None)
    found.LLM, found.SamplingParams = LLM, SamplingParams
    return found
