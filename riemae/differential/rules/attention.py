"""Attention as products and softmax, which have rules: fused kernels have no forward mode."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from riemae.differential.jets import composition, has_jets, plain
from riemae.differential.spellings import spellings


@composition(*spellings("scaled_dot_product_attention"))
def attention(
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:  # (*b, t, d), (*b, s, d), (*b, s, e) -> (*b, t, e)
    """As ``torch.nn.functional.scaled_dot_product_attention``."""
    if dropout_p > 0:
        options = {"is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return func(query, key, value, attn_mask, dropout_p, **options)
    if enable_gqa:  # a key for several heads
        times = query.shape[-3] // key.shape[-3]
        key = key.repeat_interleave(times, -3)
        value = value.repeat_interleave(times, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query * factor) @ key.transpose(-2, -1)
    allowed = _causal(scores) if is_causal else attn_mask
    return _weights(scores, allowed) @ value


def _causal(scores: Any) -> Any:
    shape = scores.shape[-2:]
    return torch.ones(shape, dtype=torch.bool, device=plain(scores).device).tril()


def _weights(scores: Any, mask: Any) -> Any:
    """Softmax over the allowed entries; 0 where none is, as torch has it."""
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype != torch.bool:
        return (scores + mask).softmax(-1)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return weights.masked_fill(~mask.any(-1, keepdim=True), 0.0)


@composition(F.multi_head_attention_forward)
def multi_head_attention(
    func: Any,
    query: Any,
    key: Any,
    value: Any,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Any,
    in_proj_bias: Any,
    bias_k: Any,
    bias_v: Any,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Any,
    out_proj_bias: Any,
    training: bool = True,
    key_padding_mask: Any = None,
    need_weights: bool = True,
    attn_mask: Any = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None,
    k_proj_weight: Any = None,
    v_proj_weight: Any = None,
    static_k: Any = None,
    static_v: Any = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:  # (t, b, e), (s, b, e), (s, b, e) -> (t, b, e), weights
    """As ``torch.nn.functional.multi_head_attention_forward``; its rarer options by ``func``."""
    rare = (training and dropout_p > 0) or static_k is not None or static_v is not None
    rare = rare or query.ndim != 3 or has_jets((attn_mask, key_padding_mask))
    if rare:
        return func(
            query,
            key,
            value,
            embed_dim_to_check,
            num_heads,
            in_proj_weight,
            in_proj_bias,
            bias_k,
            bias_v,
            add_zero_attn,
            dropout_p,
            out_proj_weight,
            out_proj_bias,
            training,
            key_padding_mask,
            need_weights,
            attn_mask,
            use_separate_proj_weight,
            q_proj_weight,
            k_proj_weight,
            v_proj_weight,
            static_k,
            static_v,
            average_attn_weights,
            is_causal,
        )
    if use_separate_proj_weight:
        weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    else:
        weights = in_proj_weight.chunk(3)
    biases = (None, None, None) if in_proj_bias is None else in_proj_bias.chunk(3)
    inputs = (query, key, value)
    projected = zip(inputs, weights, biases, strict=True)
    query, key, value = (F.linear(*parts) for parts in projected)
    mask = _mask(attn_mask, key_padding_mask, num_heads)
    if bias_k is not None:  # one key and one value more, the same for all points
        batch = query.shape[1]
        key = torch.cat([key, bias_k.expand(1, batch, -1)])
        value = torch.cat([value, bias_v.expand(1, batch, -1)])
    query, key, value = (_heads(x, num_heads) for x in (query, key, value))
    if add_zero_attn:
        key, value = (F.pad(x, (0, 0, 0, 1)) for x in (key, value))
    if mask is not None:  # what was appended is always allowed
        more = key.shape[-2] - mask.shape[-1]
        mask = F.pad(mask, (0, more), value=mask.dtype == torch.bool) if more else mask
    scores = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    shares = _weights(scores, mask)
    mixed = shares @ value  # (b, h, t, d)
    joined = mixed.permute(2, 0, 1, 3).flatten(2)
    out = F.linear(joined, out_proj_weight, out_proj_bias)
    if not need_weights:
        return out, None
    return out, shares.mean(1) if average_attn_weights else shares


def _heads(x: Any, heads: int) -> Any:  # (t, b, e) -> (b, h, t, e / h)
    return x.unflatten(-1, (heads, -1)).permute(1, 2, 0, 3)


def _mask(mask: Any, padding: Any, heads: int) -> Any:
    """What is added to the scores ``(b, h, t, s)``, or which of them are allowed."""
    merged = None
    if mask is not None:
        merged = _allowed(mask)
        if merged.ndim == 3:  # a mask for each head of each sequence
            merged = merged.unflatten(0, (-1, heads))
    if padding is not None:
        padded = _allowed(padding)[:, None, None]
        merged = padded if merged is None else _both(merged, padded)
    return merged


def _allowed(mask: Any) -> Any:
    """Layers forbid what is True; a number is added to the score."""
    return ~mask if mask.dtype == torch.bool else mask


def _both(a: Any, b: Any) -> Any:
    if a.dtype == b.dtype == torch.bool:
        return a & b
    return _added(a) + _added(b)


def _added(mask: Any) -> Any:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=torch.get_default_dtype()).masked_fill(~mask, -math.inf)
