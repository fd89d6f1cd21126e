"""Operations on sequences of which random decoders are made: attention and recurrence."""

import math

import torch
from decoder_operations import functions, modules
from torch import nn
from torch.nn import functional as F

# Attention.

modules(
    "attention",
    (4, 3),
    multihead=lambda: SelfAttention(3, 3),
    multihead_weights=lambda: SelfAttention(3, 1, index=1, need_weights=True),
    multihead_masked=lambda: SelfAttention(3, 3, attn_mask=~torch.ones(4, 4).tril().bool()),
    multihead_padded=lambda: SelfAttention(
        3, 1, key_padding_mask=torch.tensor([[False, False, True, False]])
    ),
    bias_kv=lambda: SelfAttention(3, 3, add_bias_kv=True, add_zero_attn=True),
    encoder_layer=lambda: nn.TransformerEncoderLayer(3, 3, 6, batch_first=True),
    encoder_layer_first=lambda: nn.TransformerEncoderLayer(
        3, 1, 6, activation="gelu", norm_first=True, batch_first=True
    ),
    encoder=lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(3, 1, 4, batch_first=True, dropout=0.0), 2, nn.LayerNorm(3)
    ),
    decoder_layer=lambda: WithMemory(nn.TransformerDecoderLayer(3, 3, 6, batch_first=True)),
    cross=lambda: WithMemory(nn.MultiheadAttention(3, 1, batch_first=True), times=2),
    time_first=lambda: TimeFirst(nn.TransformerEncoderLayer(3, 1, 5)),
)


class SelfAttention(nn.Module):
    def __init__(
        self,
        width,
        heads,
        index=0,
        need_weights=False,
        add_bias_kv=False,
        add_zero_attn=False,
        **options,
    ):
        super().__init__()
        self.layer = nn.MultiheadAttention(
            width, heads, batch_first=True, add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn
        )
        self.index, self.need_weights, self.options = index, need_weights, options

    def forward(self, t):
        options = dict(self.options)
        if "key_padding_mask" in options:
            options["key_padding_mask"] = options["key_padding_mask"].expand(len(t), -1)
        return self.layer(t, t, t, need_weights=self.need_weights, **options)[self.index]


class WithMemory(nn.Module):
    """Attention to constants."""

    def __init__(self, layer, times=1):
        super().__init__()
        self.layer, self.times = layer, times
        self.memory = nn.Parameter(torch.randn(1, 5, 3))

    def forward(self, t):
        return self.layer(t, *[self.memory.expand(len(t), -1, -1)] * self.times)


class TimeFirst(nn.Module):
    def __init__(self, layer, takes=lambda out: out):
        super().__init__()
        self.layer, self.takes = layer, takes

    def forward(self, t):
        return self.takes(self.layer(t.transpose(0, 1))).transpose(0, 1)


def heads(y):  # (k, 3, 2, 2)
    return y.reshape(-1, 3, 2, 2)


functions(
    "attention",
    plain=lambda y: F.scaled_dot_product_attention(heads(y), heads(y).sin(), heads(y)),
    scaled=lambda y: F.scaled_dot_product_attention(heads(y), heads(y), heads(y), scale=0.3),
    causal=lambda y: F.scaled_dot_product_attention(heads(y), heads(y), heads(y), is_causal=True),
    masked=lambda y: F.scaled_dot_product_attention(
        heads(y), heads(y), heads(y), attn_mask=torch.tensor([[True, False], [True, True]])
    ),
    added=lambda y: F.scaled_dot_product_attention(
        heads(y), heads(y), heads(y), attn_mask=torch.tensor([[0.1, -0.4], [1.0, 0.0]]).to(y)
    ),
    biased_by_distance=lambda y: F.scaled_dot_product_attention(
        heads(y), heads(y), heads(y), attn_mask=-torch.cdist(heads(y), heads(y).sin())
    ),
    grouped=lambda y: F.scaled_dot_product_attention(
        y.view(-1, 2, 3, 2), y.view(-1, 2, 3, 2)[:, :1], y.view(-1, 2, 3, 2)[:, 1:], enable_gqa=True
    ),
    by_hand=lambda y: torch.softmax(heads(y) @ heads(y).mT / math.sqrt(2), -1) @ heads(y),
    linear=lambda y: torch.einsum("bti,bsi,bsj->btj", *[F.elu(y.view(-1, 4, 3)) + 1] * 3) / 4,
    rotary=lambda y: rotated(y),
    relative=lambda y: (
        (heads(y) @ heads(y).mT + torch.arange(2).to(y)[:, None]).softmax(-1) @ heads(y)
    ),
)


def rotated(y):
    angle = torch.arange(6).to(y)
    a, b = y[:, ::2], y[:, 1::2]
    turned = torch.stack([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
    return turned.flatten(1).softmax(-1) * y


# Recurrence.

modules(
    "recurrent",
    (4, 3),
    gru=lambda: nn.GRU(3, 4, batch_first=True),
    lstm=lambda: nn.LSTM(3, 4, batch_first=True),
    rnn=lambda: nn.RNN(3, 4, batch_first=True),
    rnn_relu=lambda: nn.RNN(3, 4, batch_first=True, nonlinearity="relu"),
    gru_both_ways=lambda: nn.GRU(3, 2, batch_first=True, bidirectional=True),
    lstm_stacked=lambda: nn.LSTM(3, 3, num_layers=2, batch_first=True, dropout=0.2),
    lstm_both_ways=lambda: nn.LSTM(3, 2, num_layers=2, batch_first=True, bidirectional=True),
    lstm_projected=lambda: nn.LSTM(3, 4, proj_size=2, batch_first=True),
    gru_unbiased=lambda: nn.GRU(3, 4, bias=False, batch_first=True, num_layers=2),
    gru_time_first=lambda: TimeFirst(nn.GRU(3, 4), lambda out: out[0]),
    gru_state=lambda: LastState(nn.GRU(3, 4, batch_first=True)),
    gru_started=lambda: Started(nn.GRU(3, 4, batch_first=True)),
    gru_cell=lambda: Cell(nn.GRUCell(3, 4)),
    rnn_cell=lambda: Cell(nn.RNNCell(3, 4)),
    lstm_cell=lambda: Cell(nn.LSTMCell(3, 4)),
)


class LastState(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, t):
        return self.layer(t)[1].transpose(0, 1)


class Started(nn.Module):
    """A recurrent layer whose first state is the code, its inputs constant."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.inputs = nn.Parameter(torch.randn(3, 3))

    def forward(self, t):
        start = t.flatten(1)[None, :, :4].contiguous()
        return self.layer(self.inputs.expand(len(t), -1, -1), start)[0]


class Cell(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, t):
        state, out = None, []
        for x in t.unbind(1):
            state = self.cell(x, state)
            out.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(out, 1)
