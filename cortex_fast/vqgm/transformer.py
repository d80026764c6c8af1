"""The autoregressive prior over token grids: a decoder-only transformer. `decoding` runs it token by token.

State-dict names are those of taming-transformers' GPT (itself minGPT's), without the constant `attn.mask` buffers.
The class label is the sequence's first token and shares the vocabulary, as in the class-conditional ImageNet model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.key = nn.Linear(n_embd, n_embd)
        self.query = nn.Linear(n_embd, n_embd)
        self.value = nn.Linear(n_embd, n_embd)
        self.resid_drop = nn.Dropout(dropout)
        self.proj = nn.Linear(n_embd, n_embd)
        self.n_head = n_head

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.n_head, width // self.n_head)
        q, k, v = (project(x).view(shape).transpose(1, 2) for project in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.resid_drop(self.proj(y.transpose(1, 2).reshape(batch, length, width)))


class Block(nn.Module):
    def __init__(self, n_embd: int, n_head: int, dropout: float) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(n_embd)
        self.ln2 = nn.LayerNorm(n_embd)
        self.attn = CausalSelfAttention(n_embd, n_head, dropout)
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, 4 * n_embd), nn.GELU(), nn.Linear(4 * n_embd, n_embd), nn.Dropout(dropout)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class GPT(nn.Module):
    """The transformer of taming-transformers: from token ids to the next tokens' logits.

    Args:
        vocab_size: tokens of the codebook and of the conditions.
        block_size: most tokens of a sequence.
        n_layer: number of blocks.
        n_head: heads of attention.
        n_embd: channels, a multiple of n_head.
        embd_pdrop: dropout of the embedded tokens. Default 0.
        resid_pdrop: dropout of the blocks' branches. Default 0.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        embd_pdrop: float = 0.0,
        resid_pdrop: float = 0.0,
    ) -> None:
        super().__init__()
        self.tok_emb = nn.Embedding(vocab_size, n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, block_size, n_embd))
        self.drop = nn.Dropout(embd_pdrop)
        self.blocks = nn.ModuleList(Block(n_embd, n_head, resid_pdrop) for _ in range(n_layer))
        self.ln_f = nn.LayerNorm(n_embd)
        self.head = nn.Linear(n_embd, vocab_size, bias=False)
        self.block_size = block_size
        self.n_head = n_head
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, ids: Tensor) -> Tensor:
        """The logits of the token after each position, given the tokens up to it.

        Args:
            ids: int64 [B,T], with T of at most block_size, in [0, vocab_size).

        Returns:
            Logits [B,T,vocab_size].
        """
        x = self.drop(self.tok_emb(ids) + self.pos_emb[:, : ids.shape[1]])
        for block in self.blocks:
            x = block(x)
        return self.head(self.ln_f(x))
