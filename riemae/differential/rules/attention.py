"""Attention as products and softmax, which have rules: fused kernels have no forward mode."""

from __future__ import annotations

import inspect
import math
from types import SimpleNamespace
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
    factor = scale
    if factor is None:
        factor = 1 / math.sqrt(query.shape[-1])
    scores = (query * factor) @ key.transpose(-2, -1)
    allowed = _causal(scores) if is_causal else attn_mask
    return _weights(scores, allowed) @ value


def _causal(scores: Any) -> Any:
    shape = scores.shape[-2:]
    device = plain(scores).device
    everything = torch.ones(shape, dtype=torch.bool, device=device)
    return everything.tril()


def _weights(scores: Any, mask: Any) -> Any:
    """Softmax over the allowed entries; 0 where none is, as torch has it."""
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype != torch.bool:
        return (scores + mask).softmax(-1)
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    nothing_allowed = ~mask.any(-1, keepdim=True)
    return weights.masked_fill(nothing_allowed, 0.0)


_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


@composition(F.multi_head_attention_forward)
def multi_head_attention(func: Any, *args: Any, **kwargs: Any) -> Any:
    """As ``torch.nn.functional.multi_head_attention_forward``; its rarer options by ``func``."""
    bound = _SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = SimpleNamespace(**bound.arguments)
    random = given.training and given.dropout_p > 0
    static = given.static_k is not None or given.static_v is not None
    masked = has_jets((given.attn_mask, given.key_padding_mask))
    if random or static or masked or given.query.ndim != 3:
        return func(*args, **kwargs)
    query, key, value = _projected(given)  # (b, h, t, d)
    mask = _mask(given.attn_mask, given.key_padding_mask, given.num_heads)
    if mask is not None:  # what was appended is always allowed
        more = key.shape[-2] - mask.shape[-1]
        if more:
            mask = F.pad(mask, (0, more), value=mask.dtype == torch.bool)
    factor = 1 / math.sqrt(query.shape[-1])
    scores = (query * factor) @ key.transpose(-2, -1)
    shares = _weights(scores, mask)
    mixed = shares @ value
    joined = mixed.permute(2, 0, 1, 3).flatten(2)
    out = F.linear(joined, given.out_proj_weight, given.out_proj_bias)
    if not given.need_weights:
        return out, None
    if given.average_attn_weights:
        shares = shares.mean(1)
    return out, shares


def _projected(given: Any) -> list[Any]:  # three times (t, b, e) -> (b, h, t, e / h)
    """Queries, keys and values of all heads."""
    if given.use_separate_proj_weight:
        weights = (given.q_proj_weight, given.k_proj_weight, given.v_proj_weight)
    else:
        weights = given.in_proj_weight.chunk(3)
    none = (None, None, None)
    biases = none if given.in_proj_bias is None else given.in_proj_bias.chunk(3)
    query = F.linear(given.query, weights[0], biases[0])
    key = F.linear(given.key, weights[1], biases[1])
    value = F.linear(given.value, weights[2], biases[2])
    if given.bias_k is not None:  # one key and one value more, the same for all points
        batch = query.shape[1]
        key = torch.cat([key, given.bias_k.expand(1, batch, -1)])
        value = torch.cat([value, given.bias_v.expand(1, batch, -1)])
    query = _heads(query, given.num_heads)
    key = _heads(key, given.num_heads)
    value = _heads(value, given.num_heads)
    if given.add_zero_attn:
        key = F.pad(key, (0, 0, 0, 1))
        value = F.pad(value, (0, 0, 0, 1))
    return [query, key, value]


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
