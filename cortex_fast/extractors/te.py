"""TE, the published code's transformer information extractor."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cortex_fast.data.grids import Grid, sides

LAYERS = 12
DROPOUT = 0.2


class SelfAttention(nn.Module):
    """queries [B,Q,width], tokens [B,T,width] -> [B*Q,width]. Parameters are named as nn.MultiheadAttention's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // math.gcd(width, 64)  # of 64 channels, or of 32 or 16 where 64 does not divide the width
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        width = self.out_proj.in_features
        weight, bias = self.in_proj_weight, self.in_proj_bias
        query = self._split(F.linear(queries, weight[:width], bias[:width]))
        key, value = F.linear(tokens, weight[width:], bias[width:]).chunk(2, dim=2)
        dropout = DROPOUT if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, self._split(key), self._split(value), dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2).flatten(0, 1))

    def _split(self, x: Tensor) -> Tensor:
        """[B,T,width] -> [B,heads,T,width/heads]."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Tokens [B,T,width] -> [B,T,width]: LayerNorm before attention and MLP, BatchNorm on each branch after it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attn = SelfAttention(width)
        self.dropout_attn = nn.Dropout(DROPOUT)
        self.bn_attn = nn.BatchNorm1d(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(4 * width, width),
            nn.Dropout(DROPOUT),
        )
        self.bn_mlp = nn.BatchNorm1d(width)

    def forward(self, x: Tensor, first_only: bool = False) -> Tensor:
        """With `first_only`, in eval mode, the result is that of the first token alone, [B,1,width]."""
        h = self.norm1(x)
        queries = h
        if first_only and not self.training:  # while training, the batch norms need every token's statistics
            x, queries = x[:, :1], h[:, :1]
        # Each token is a row: statistics run over images and tokens alike. Each BatchNorm follows a linear layer, into
        # which the engine folds it.
        x = x + self.dropout_attn(self.bn_attn(self.self_attn(queries, h))).view_as(x)
        return x + self.bn_mlp(self.mlp(self.norm2(x).flatten(0, 1))).view_as(x)


class TE(nn.Module):
    """E [B,in_channels,h,w] -> logits [B,num_classes], for grid m or (h, w).

    Projects every token, puts a class token before them and classifies the class token after twelve encoder layers.
    State-dict names are the published code's.
    """

    def __init__(self, *, num_classes: int, in_channels: int, width: int, grid: Grid) -> None:
        super().__init__()
        self.grid = sides(grid)
        hidden = 2 * width
        self.scale = math.sqrt(width)
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(1, self.grid[0] * self.grid[1] + 1, width))
        self.proj = nn.Sequential(nn.Linear(in_channels, width), nn.LayerNorm(width), nn.GELU())
        self.dropout = nn.Dropout(DROPOUT)
        self.encoder = nn.ModuleList(EncoderLayer(width) for _ in range(LAYERS))
        self.final_norm = nn.LayerNorm(width)
        self.pre_classifier = nn.Sequential(
            nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Dropout(DROPOUT)
        )
        self.fc = nn.Linear(hidden, num_classes)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.proj(x.flatten(2).transpose(1, 2)) * self.scale  # the class token is not scaled
        first = self.cls_token.expand(tokens.shape[0], -1, -1)  # x.shape would keep x alive beyond its projection
        x = self.dropout(torch.cat((first, tokens), dim=1) + self.pos_embed)
        for number, layer in enumerate(self.encoder, 1):
            x = layer(x, first_only=number == LAYERS)  # nothing reads the others after the last layer
        return self.fc(self.pre_classifier(self.final_norm(x[:, 0])))
