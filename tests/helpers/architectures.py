"""Tiny configurations of every architecture that TransformerLens hooks as a causal language model of text.

Each line has Hugging Face's class, the sizes that make its default configuration tiny, and models of that
class. A class with several shapes of block has a line for each.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import transformers as hf
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from helpers.tiny import _WORDS, fill

MODEL_TYPES = {architecture: name for name, architecture in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()}

N_LAYERS = 2
_SIZES: dict[str, Any] = {
    **{"vocab_size": 3 + len(_WORDS), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None},
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": N_LAYERS},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8},
    **{"max_position_embeddings": 32, "sliding_window": 4},
    **{"num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2},
    **{"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
}
_UNSHARED = {"num_key_value_heads": ..., "head_dim": ...}
_LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 12,
    "num_key_value_heads": 4,
    **{"first_k_dense_replace": 1, "n_group": 2, "topk_group": 1},
}
_MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8}
_CHUNKS = {
    **{"no_rope_layers": [1, 0], "layer_types": ["chunked_attention", "full_attention"]},
    **{"attention_chunk_size": 4, "floor_scale": 4},
}
_WINDOWS = {"layer_types": ["sliding_attention", "full_attention"]}


@dataclass(frozen=True, eq=False)
class Architecture:
    """One line of the table: `name` is Hugging Face's class, `models` are some models of it, and `options`
    distinguish several lines of one class. `sizes` are its configuration values that differ from the usual
    ones; `...` leaves one out."""

    name: str
    models: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{name}={value}" for name, value in self.options.items())])

    def build(self) -> PreTrainedModel:
        """Return a random model in float64."""
        sizes = {**_SIZES, **self.sizes, **self.options}
        config = CONFIG_MAPPING[MODEL_TYPES[self.name]](
            **{name: value for name, value in sizes.items() if value is not ...}
        )
        config._attn_implementation = config._experts_implementation = "eager"
        torch.manual_seed(0)
        return fill(getattr(hf, self.name)(config).double().eval())


ARCHITECTURES = [
    Architecture("AfmoeForCausalLM", "Trinity"),
    Architecture("ApertusForCausalLM", "Apertus"),
    Architecture("ArceeForCausalLM", "AFM"),
    Architecture("BambaForCausalLM", "Bamba", sizes=_MAMBA),
    Architecture("BertLMHeadModel", "BERT as a decoder"),
    Architecture("BitNetForCausalLM", "BitNet"),
    Architecture("BloomForCausalLM", "Bloom"),
    Architecture("CodeGenForCausalLM", "CodeGen", sizes={"rotary_dim": 4}),
    Architecture("CohereForCausalLM", "Command R, Aya"),
    Architecture("CohereForCausalLM", "Command R+", {"use_qk_norm": True}),
    Architecture("Cohere2ForCausalLM", "Command R7B", sizes=_WINDOWS),
    Architecture("DeepseekV2ForCausalLM", "DeepSeek-V2", sizes=_LATENT),
    Architecture("DeepseekV2ForCausalLM", "DeepSeek-V2-Lite", {"q_lora_rank": None}, _LATENT),
    Architecture("DeepseekV3ForCausalLM", "DeepSeek-V3, R1", sizes=_LATENT),
    Architecture("DeepseekV4ForCausalLM", "DeepSeek-V4", sizes={"q_lora_rank": 16, "o_lora_rank": 16}),
    Architecture("Ernie4_5ForCausalLM", "ERNIE 4.5"),
    Architecture("Ernie4_5_MoeForCausalLM", "ERNIE 4.5 A3B"),
    Architecture("Exaone4ForCausalLM", "EXAONE 4"),
    Architecture("FalconForCausalLM", "Falcon 7B", sizes={"head_dim": ...}),
    Architecture(
        "FalconForCausalLM",
        "Falcon RW",
        {"parallel_attn": False, "multi_query": False, "alibi": True},
        _UNSHARED,
    ),
    Architecture(
        "FalconForCausalLM",
        "Falcon 40B",
        {"new_decoder_architecture": True},
        {"head_dim": ..., "num_kv_heads": 2},
    ),
    Architecture("FalconH1ForCausalLM", "Falcon-H1", sizes={**_MAMBA, "mamba_d_ssm": 64}),
    Architecture("FalconMambaForCausalLM", "Falcon Mamba"),
    Architecture("FlexOlmoForCausalLM", "FlexOlmo"),
    Architecture("GemmaForCausalLM", "Gemma"),
    Architecture("Gemma2ForCausalLM", "Gemma 2"),
    Architecture("Gemma3ForCausalLM", "Gemma 3 (text)", sizes=_WINDOWS),
    Architecture("Gemma4ForCausalLM", "Gemma 4 31B (text)", {"hidden_size_per_layer_input": 0}, _WINDOWS),
    Architecture(
        "Gemma4ForCausalLM",
        "Gemma 4 (text)",
        sizes={**_WINDOWS, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 3 + len(_WORDS)},
    ),
    Architecture("GlmForCausalLM", "GLM-4"),
    Architecture("Glm4ForCausalLM", "GLM-4-0414"),
    Architecture("Glm4MoeForCausalLM", "GLM-4.5"),
    Architecture("Glm4MoeLiteForCausalLM", "GLM-4.7 Flash", sizes=_LATENT),
    Architecture(
        "GlmMoeDsaForCausalLM",
        "GLM-5",
        sizes={**_LATENT, "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4},
    ),
    Architecture("GPT2LMHeadModel", "GPT-2", sizes=_UNSHARED),
    Architecture("GPTBigCodeForCausalLM", "SantaCoder, StarCoder", sizes=_UNSHARED),
    Architecture("GPTJForCausalLM", "GPT-J", sizes={**_UNSHARED, "rotary_dim": 4}),
    Architecture(
        "GPTNeoForCausalLM", "GPT-Neo", sizes={**_UNSHARED, "attention_types": [[["global", "local"], 1]]}
    ),
    Architecture("GPTNeoXForCausalLM", "Pythia, GPT-NeoX", sizes=_UNSHARED),
    Architecture("GPTNeoXForCausalLM", "RedPajama-INCITE", {"use_parallel_residual": False}, _UNSHARED),
    Architecture("GptOssForCausalLM", "gpt-oss"),
    Architecture("GraniteForCausalLM", "Granite 3"),
    Architecture("GraniteMoeForCausalLM", "Granite 3 MoE"),
    Architecture(
        "GraniteMoeHybridForCausalLM",
        "Granite 4 350M and 1B",
        {"num_local_experts": 0},
        {
            **_MAMBA,
            **{"layer_types": ["attention", "attention"], "shared_intermediate_size": 48},
            **{"num_experts": ..., "position_embedding_type": "rope"},
        },
    ),
    Architecture("GraniteMoeHybridForCausalLM", "Granite 4", sizes=_MAMBA),
    Architecture("HrmTextForCausalLM", "HRM-Text"),
    Architecture("HunYuanDenseV1ForCausalLM", "Hunyuan"),
    Architecture("Jais2ForCausalLM", "Jais 2"),
    Architecture("JambaForCausalLM", "Jamba"),
    Architecture("JetMoeForCausalLM", "JetMoE"),
    Architecture("LagunaForCausalLM", "Laguna"),
    Architecture("Lfm2ForCausalLM", "LFM2", sizes={"layer_types": ["conv", "full_attention"]}),
    Architecture("Lfm2MoeForCausalLM", "LFM2 MoE", sizes={"layer_types": ["conv", "full_attention"]}),
    Architecture("LlamaForCausalLM", "Llama 1 to 3, Yi, TinyLlama, SmolLM"),
    Architecture("Llama4ForCausalLM", "Llama 4 Scout (text)", sizes=_CHUNKS),
    Architecture("Llama4ForCausalLM", "Llama 4 Maverick (text)", {"interleave_moe_layer_step": 2}, _CHUNKS),
    Architecture("MambaForCausalLM", "Mamba"),
    Architecture("Mamba2ForCausalLM", "Mamba 2", sizes={"num_heads": 8, "state_size": 8}),
    Architecture("MiniMaxM2ForCausalLM", "MiniMax-M2"),
    Architecture("Ministral3ForCausalLM", "Ministral 3"),
    Architecture("MistralForCausalLM", "Mistral"),
    Architecture("MixtralForCausalLM", "Mixtral"),
    Architecture("ModernBertDecoderForCausalLM", "Ettin"),
    Architecture("MptForCausalLM", "MPT", sizes=_UNSHARED),
    Architecture("NanoChatForCausalLM", "nanochat"),
    Architecture("NemotronForCausalLM", "Nemotron, Minitron"),
    Architecture("NemotronHForCausalLM", "Nemotron-H"),
    Architecture("OlmoForCausalLM", "OLMo"),
    Architecture("OlmoForCausalLM", "OLMo-7B-0424", {"clip_qkv": 1.0}),
    Architecture("Olmo2ForCausalLM", "OLMo-2"),
    Architecture("Olmo3ForCausalLM", "OLMo-3", sizes=_WINDOWS),
    Architecture("OlmoeForCausalLM", "OLMoE"),
    Architecture("OlmoHybridForCausalLM", "OLMo Hybrid"),
    Architecture("OpenAIGPTLMHeadModel", "GPT (2018)", sizes=_UNSHARED),
    Architecture("OPTForCausalLM", "OPT", sizes={"ffn_dim": 48, "word_embed_proj_dim": 32}),
    Architecture("PhiForCausalLM", "Phi 1 and 2"),
    Architecture("Phi3ForCausalLM", "Phi 3 and 4"),
    Architecture("Qwen2ForCausalLM", "Qwen 1.5 to 2.5"),
    Architecture("Qwen2MoeForCausalLM", "Qwen 1.5 MoE"),
    Architecture("Qwen3ForCausalLM", "Qwen 3"),
    Architecture("Qwen3MoeForCausalLM", "Qwen 3 MoE"),
    Architecture("Qwen3NextForCausalLM", "Qwen 3 Next"),
    Architecture("Qwen3_5ForCausalLM", "Qwen 3.5"),
    Architecture("Qwen3_5MoeForCausalLM", "Qwen 3.5 MoE"),
    Architecture("RecurrentGemmaForCausalLM", "RecurrentGemma"),
    Architecture("RwkvForCausalLM", "RWKV-4"),
    Architecture("SeedOssForCausalLM", "Seed-OSS"),
    Architecture("SmolLM3ForCausalLM", "SmolLM3"),
    Architecture("StableLmForCausalLM", "StableLM"),
    Architecture("StableLmForCausalLM", "", {"use_parallel_residual": True}),
    Architecture(
        "StableLmForCausalLM", "StableLM 2 12B", {"qk_layernorm": True, "use_parallel_residual": True}
    ),
    Architecture("Starcoder2ForCausalLM", "StarCoder2"),
    Architecture("VaultGemmaForCausalLM", "VaultGemma"),
    Architecture("XGLMForCausalLM", "XGLM", sizes={"ffn_dim": 48, "num_layers": 2, "attention_heads": 4}),
    Architecture("YoutuForCausalLM", "Youtu-LLM", sizes=_LATENT),
    Architecture("Zamba2ForCausalLM", "Zamba2", sizes={"layer_types": ["mamba", "hybrid"]}),
]
