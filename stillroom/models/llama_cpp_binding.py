"""llama.h as ctypes sees it: the structs and functions we call, for exactly the pinned wheel.

Layouts follow `include/llama.h` of llama.cpp as shipped in xllamacpp 2026.10.11549. Two guards stand before any use:
the version comparison in `stillroom.quants.library`, and `_check_layout`, which reads the defaults that the library
itself fills in and compares those we know.
"""

from __future__ import annotations

import ctypes as c
from functools import lru_cache
from typing import Any

from stillroom.contracts.errors import Fault
from stillroom.quants.library import LLAMA_CPP_VERSION, load_library

GGML_TYPE_F32 = 0
FLASH_ATTENTION_OFF = 0
VOCAB_SENTENCEPIECE = 1


class ModelParams(c.Structure):
    """`struct llama_model_params`."""

    _fields_ = [
        ("devices", c.c_void_p),
        ("tensor_buft_overrides", c.c_void_p),
        ("n_gpu_layers", c.c_int32),
        ("split_mode", c.c_int),
        ("load_mode", c.c_int),
        ("lazy_mode", c.c_int),
        ("main_gpu", c.c_int32),
        ("tensor_split", c.c_void_p),
        ("progress_callback", c.c_void_p),
        ("progress_callback_user_data", c.c_void_p),
        ("kv_overrides", c.c_void_p),
        ("vocab_only", c.c_bool),
        ("check_tensors", c.c_bool),
        ("use_extra_bufts", c.c_bool),
        ("no_host", c.c_bool),
        ("no_alloc", c.c_bool),
        ("load_mtp", c.c_bool),
    ]


class ContextParams(c.Structure):
    """`struct llama_context_params`."""

    _fields_ = [
        ("n_ctx", c.c_uint32),
        ("n_batch", c.c_uint32),
        ("n_ubatch", c.c_uint32),
        ("n_seq_max", c.c_uint32),
        ("n_rs_seq", c.c_uint32),
        ("n_outputs_max", c.c_uint32),
        ("n_outputs_max_per_seq", c.c_uint32),
        ("n_threads", c.c_int32),
        ("n_threads_batch", c.c_int32),
        ("ctx_type", c.c_int),
        ("rope_scaling_type", c.c_int),
        ("pooling_type", c.c_int),
        ("attention_type", c.c_int),
        ("flash_attn_type", c.c_int),
        ("rope_freq_base", c.c_float),
        ("rope_freq_scale", c.c_float),
        ("yarn_ext_factor", c.c_float),
        ("yarn_attn_factor", c.c_float),
        ("yarn_beta_fast", c.c_float),
        ("yarn_beta_slow", c.c_float),
        ("yarn_orig_ctx", c.c_uint32),
        ("defrag_thold", c.c_float),
        ("cb_eval", c.c_void_p),
        ("cb_eval_user_data", c.c_void_p),
        ("type_k", c.c_int),
        ("type_v", c.c_int),
        ("moe_cache_size", c.c_size_t),
        ("abort_callback", c.c_void_p),
        ("abort_callback_data", c.c_void_p),
        ("embeddings", c.c_bool),
        ("offload_kqv", c.c_bool),
        ("no_perf", c.c_bool),
        ("op_offload", c.c_bool),
        ("swa_full", c.c_bool),
        ("kv_unified", c.c_bool),
        ("samplers", c.c_void_p),
        ("n_samplers", c.c_size_t),
        ("ctx_other", c.c_void_p),
    ]


class Batch(c.Structure):
    """`struct llama_batch`: tokens of one or many sequences, and which of them get logits."""

    _fields_ = [
        ("n_tokens", c.c_int32),
        ("token", c.POINTER(c.c_int32)),
        ("embd", c.POINTER(c.c_float)),
        ("pos", c.POINTER(c.c_int32)),
        ("n_seq_id", c.POINTER(c.c_int32)),
        ("seq_id", c.POINTER(c.POINTER(c.c_int32))),
        ("logits", c.POINTER(c.c_int8)),
    ]


LogCallback = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)

_P, _I, _B, _S = c.c_void_p, c.c_int32, c.c_bool, c.c_char_p
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    # name: (what it returns, what it takes)
    "llama_backend_init": (None, []),
    "llama_log_set": (None, [LogCallback, _P]),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (_P, [_S, ModelParams]),
    "llama_model_free": (None, [_P]),
    "llama_model_get_vocab": (_P, [_P]),
    "llama_model_n_ctx_train": (_I, [_P]),
    "llama_model_desc": (_I, [_P, _S, c.c_size_t]),
    "llama_model_chat_template": (_S, [_P, _S]),
    "llama_model_meta_val_str": (_I, [_P, _S, _S, c.c_size_t]),
    "llama_init_from_model": (_P, [_P, ContextParams]),
    "llama_free": (None, [_P]),
    "llama_adapter_lora_init": (_P, [_P, _S]),
    "llama_set_adapters_lora": (_I, [_P, c.POINTER(_P), c.c_size_t, c.POINTER(c.c_float)]),
    "llama_get_memory": (_P, [_P]),
    "llama_memory_clear": (None, [_P, _B]),
    "llama_memory_seq_rm": (_B, [_P, _I, _I, _I]),
    "llama_memory_seq_cp": (None, [_P, _I, _I, _I, _I]),
    "llama_decode": (_I, [_P, Batch]),
    "llama_get_logits": (c.POINTER(c.c_float), [_P]),
    "llama_tokenize": (_I, [_P, _S, _I, c.POINTER(c.c_int32), _I, _B, _B]),
    "llama_token_to_piece": (_I, [_P, _I, _S, _I, _I, _B]),
    "llama_vocab_n_tokens": (_I, [_P]),
    "llama_vocab_type": (c.c_int, [_P]),
    "llama_vocab_get_add_bos": (_B, [_P]),
}


@LogCallback
def _silence(level: int, text: bytes, data: object) -> None:
    """llama.cpp prints hundreds of lines a load; what matters comes back as a return code."""


@lru_cache(maxsize=1)
def llama() -> c.CDLL:
    """llama.cpp with its functions' types declared, its layout checked, its backend up and its log silent."""
    library = load_library()
    for name, (result, arguments) in _SIGNATURES.items():
        function = library[name]
        function.restype, function.argtypes = result, arguments
        setattr(library, name, function)
    library.llama_log_set(_silence, None)
    library.llama_backend_init()
    _check_layout(library)
    return library


def _check_layout(library: c.CDLL) -> None:
    """Fields from the start, middle and end of both structs hold the defaults that llama.cpp documents."""
    context, model = library.llama_context_default_params(), library.llama_model_default_params()
    read = {
        "n_ctx": (context.n_ctx, 512),
        "n_batch": (context.n_batch, 2048),
        "n_ubatch": (context.n_ubatch, 512),
        "yarn_ext_factor": (context.yarn_ext_factor, -1.0),
        "type_k": (context.type_k, 1),
        "type_v": (context.type_v, 1),
        "embeddings": (context.embeddings, False),
        "offload_kqv": (context.offload_kqv, True),
        "op_offload": (context.op_offload, True),
        "n_samplers": (context.n_samplers, 0),
        "ctx_other": (context.ctx_other, None),
        "load_mode": (model.load_mode, -1),
        "use_extra_bufts": (model.use_extra_bufts, True),
        "no_alloc": (model.no_alloc, False),
    }
    wrong = {name: got for name, (got, expected) in read.items() if got != expected}
    if wrong:
        raise Fault(
            "llama.cpp's structs are not laid out as stillroom knows them",
            got=wrong,
            expected="the defaults of llama.h",
            do=f"install xllamacpp=={LLAMA_CPP_VERSION} afresh",
        )
