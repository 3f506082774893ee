"""llama.cpp through its C functions, as the package `xllamacpp` brings them, and a Llama-like model as a file for it.

Its own converter knows tokenizers by a list, so the file has no vocabulary and is asked in token ids.
"""

import ctypes
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np


class Settings(ctypes.Structure):
    """Any of its structures that it gives and takes by value; more than any of them needs."""

    _fields_ = (("content", ctypes.c_char * 512),)


def write_model(model, path):
    """A transformers model of the family `llama` with tied embeddings, in float32."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("no_vocab")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(name.split(".")[-2])
        if heads:  # its rotation takes neighbours for a pair
            weight = weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
        writer.add_tensor(names.get_name(name, (".weight",)), weight.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model, ids, vocab, vector=None):
    """Its logits [position, vocab] of the model in a file, with the control vector in another added."""
    (package,) = find_spec("xllamacpp").submodule_search_locations
    library = ctypes.CDLL(str(next(Path(package).glob("*.so"))))

    def call(name, result, *given):
        function = getattr(library, f"llama_{name}")
        function.restype = result
        return function(*given)

    call("backend_init", None)
    loaded = call("model_load_from_file", ctypes.c_void_p, str(model).encode(), call("model_default_params", Settings))
    loaded = ctypes.c_void_p(loaded)
    settings = call("context_default_params", Settings)
    context = ctypes.c_void_p(call("init_from_model", ctypes.c_void_p, loaded, settings))
    assert loaded and context
    if vector is not None:
        found = {int(t.name.rpartition(".")[2]): t.data for t in gguf.GGUFReader(vector).tensors}
        width, last = len(next(iter(found.values()))), max(found)
        # As its own `common_control_vector_load` lays them out: direction.N is the N-th, from 1.
        laid = np.stack([found.get(i, np.zeros(width, np.float32)) for i in range(1, last + 1)])
        size, into = ctypes.c_size_t(laid.size), laid.ctypes.data_as(ctypes.c_void_p)
        assert call("set_adapter_cvec", ctypes.c_int, context, into, size, width, 1, last) == 0
    rows = []
    for one in ids:
        batch = call("batch_get_one", Settings, (ctypes.c_int * 1)(one), 1)
        assert call("decode", ctypes.c_int, context, batch) == 0
        row = call("get_logits_ith", ctypes.POINTER(ctypes.c_float), context, -1)
        rows.append(np.ctypeslib.as_array(row, (vocab,)).copy())
    call("free", None, context)
    call("model_free", None, loaded)
    return np.stack(rows)
