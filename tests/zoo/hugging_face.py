"""Models of `transformers`, unmodified, from tiny configurations. Needs transformers (extra `zoo`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import nn

from tests.zoo.case import VOCABULARY, Case, D, F, Ffn, in_layers, pixels, tokens

SIZES = {"hidden_size": D, "intermediate_size": F, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT = {**SIZES, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
GROUPED_QUERY = {**TEXT, "num_key_value_heads": 2}
IMAGE = {**SIZES, "image_size": 32, "patch_size": 8}
GATED = ("gate_proj", "up_proj", "down_proj")
HEAD = "a layer_norm stands between its activation and its last projection"
STACKED = "stacked in one 3-D parameter"


def made(model: type[nn.Module], config: type[Any], **sizes: Any) -> Callable[[bool], nn.Module]:
    """A maker of `model(config(**sizes))`; without dropout, every rate in the configuration is zero."""

    def make(dropout: bool) -> nn.Module:
        settings = config(**sizes)
        if not dropout:
            for part in (settings, *(v for v in vars(settings).values() if isinstance(v, hf.PreTrainedConfig))):
                for name, value in vars(part).items():
                    if "drop" in name and isinstance(value, float):
                        setattr(part, name, 0.0)
        settings.use_cache = False  # what trainers do: a cache is for generation
        return model(settings)

    return make


def bert_layers(path: str) -> tuple[Ffn, ...]:
    """BERT's feed-forward layer spans two modules, siblings of the attention."""
    return in_layers(path, "gelu", "intermediate.dense", "output.dense")


def t5(feed_forward: str, family: str, *weights: str) -> Case:
    first = tuple(f"decoder.block.0.layer.2.DenseReluDense.{name}.weight" for name in weights)
    sizes = {"d_model": D, "d_ff": F, "d_kv": 16, "num_layers": 2, "num_heads": 4, "vocab_size": VOCABULARY}
    config = {**sizes, "feed_forward_proj": feed_forward, "decoder_start_token_id": 0}
    return Case(
        made(hf.T5ForConditionalGeneration, hf.T5Config, **config),
        lambda: {**tokens(), "labels": torch.randint(5, VOCABULARY, (2, 8))},
        in_layers("encoder.block.{}.layer.1.DenseReluDense", family, *weights)
        + in_layers("decoder.block.{}.layer.2.DenseReluDense", family, *weights),
        # T5 sets requires_grad inside a checkpointed layer: Dynamo breaks there and runs the whole layer eagerly.
        lost_to_checkpointing=first,
    )


def clip() -> Case:
    text, vision = {**TEXT, "max_position_embeddings": 16}, IMAGE
    ffns = [
        in_layers(f"{part}_model.encoder.layers.{{}}.mlp", "quick_gelu", "fc1", "fc2") for part in ("text", "vision")
    ]
    return Case(
        made(hf.CLIPModel, hf.CLIPConfig, text_config=text, vision_config=vision, projection_dim=32),
        lambda: {**tokens(), **pixels()},
        ffns[0] + ffns[1],
    )


MODERNBERT = {**TEXT, "intermediate_size": 128, "cls_token_id": 1, "sep_token_id": 2}
QWEN_MOE = {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 128, "num_experts": 4}
GPT2 = {"n_embd": D, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}
OPT = {**TEXT, "ffn_dim": F, "word_embed_proj_dim": D}
BLOOM = {"hidden_size": D, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY}
DISTIL = {"dim": D, "hidden_dim": F, "n_layers": 2, "n_heads": 4, "vocab_size": VOCABULARY}
LAYERS_MLP = "model.layers.{}.mlp"
H_MLP = "transformer.h.{}.mlp"


def decoder(model: type[nn.Module], config: type[Any], family: str, *weights: str, **sizes: Any) -> Case:
    """A decoder-only model in the modern spelling: model.layers.N.mlp."""
    return Case(made(model, config, **{**GROUPED_QUERY, **sizes}), tokens, in_layers(LAYERS_MLP, family, *weights))


MODELS = {
    "GPT-2": Case(made(hf.GPT2LMHeadModel, hf.GPT2Config, **GPT2), tokens,
                  in_layers(H_MLP, "gelu_tanh", "c_fc", "c_proj")),
    "Llama": decoder(hf.LlamaForCausalLM, hf.LlamaConfig, "swiglu", *GATED),
    "Mistral": decoder(hf.MistralForCausalLM, hf.MistralConfig, "swiglu", *GATED),
    "Qwen2": decoder(hf.Qwen2ForCausalLM, hf.Qwen2Config, "swiglu", *GATED),
    "Qwen3": decoder(hf.Qwen3ForCausalLM, hf.Qwen3Config, "swiglu", *GATED, head_dim=16),
    "Gemma": decoder(hf.GemmaForCausalLM, hf.GemmaConfig, "geglu_tanh", *GATED, head_dim=16),
    "Phi-3": decoder(hf.Phi3ForCausalLM, hf.Phi3Config, "swiglu", "gate_up_proj", "down_proj"),
    "GLM": decoder(hf.GlmForCausalLM, hf.GlmConfig, "swiglu", "gate_up_proj", "down_proj", head_dim=16),
    "OPT": Case(made(hf.OPTForCausalLM, hf.OPTConfig, **OPT), tokens,
                in_layers("model.decoder.layers.{}", "relu", "fc1", "fc2")),
    "Nemotron": decoder(hf.NemotronForCausalLM, hf.NemotronConfig, "relu2", "up_proj", "down_proj"),
    "GPT-NeoX": Case(made(hf.GPTNeoXForCausalLM, hf.GPTNeoXConfig, **TEXT), tokens,
                     in_layers("gpt_neox.layers.{}.mlp", "gelu", "dense_h_to_4h", "dense_4h_to_h")),
    "Bloom": Case(made(hf.BloomForCausalLM, hf.BloomConfig, **BLOOM), tokens,
                  in_layers(H_MLP, "gelu_tanh", "dense_h_to_4h", "dense_4h_to_h")),
    "Falcon": Case(made(hf.FalconForCausalLM, hf.FalconConfig, **TEXT), tokens,
                   in_layers(H_MLP, "gelu", "dense_h_to_4h", "dense_4h_to_h")),
    "BERT": Case(made(hf.BertForMaskedLM, hf.BertConfig, **TEXT), tokens,
                 bert_layers("bert.encoder.layer.{}"), (("cls.predictions", HEAD),)),
    "RoBERTa": Case(made(hf.RobertaForMaskedLM, hf.RobertaConfig, **TEXT, max_position_embeddings=64), tokens,
                    bert_layers("roberta.encoder.layer.{}"), (("lm_head", HEAD),)),
    "DistilBERT": Case(made(hf.DistilBertForMaskedLM, hf.DistilBertConfig, **DISTIL), tokens,
                       in_layers("distilbert.transformer.layer.{}.ffn", "gelu", "lin1", "lin2"), (("", HEAD),)),
    "ModernBERT": Case(made(hf.ModernBertForMaskedLM, hf.ModernBertConfig, **MODERNBERT), tokens,
                       in_layers(LAYERS_MLP, "geglu", "Wi", "Wo"), (("", HEAD),)),
    "T5": t5("relu", "relu", "wi", "wo"),
    "T5 (gated)": t5("gated-gelu", "geglu_tanh", "wi_0", "wi_1", "wo"),
    "ViT": Case(made(hf.ViTModel, hf.ViTConfig, **IMAGE), pixels, in_layers("layers.{}.mlp", "gelu", "fc1", "fc2")),
    "CLIP": clip(),
    "Mixtral": Case(made(hf.MixtralForCausalLM, hf.MixtralConfig, **GROUPED_QUERY, num_local_experts=4), tokens, (),
                    tuple((f"model.layers.{i}.mlp.experts", STACKED) for i in (0, 0, 1, 1))),
    "Qwen2-MoE": Case(made(hf.Qwen2MoeForCausalLM, hf.Qwen2MoeConfig, **GROUPED_QUERY, **QWEN_MOE), tokens,
                      in_layers("model.layers.{}.mlp.shared_expert", "swiglu", *GATED),
                      tuple((f"model.layers.{i}.mlp.experts", STACKED) for i in (0, 0, 1, 1))),
}  # fmt: skip
