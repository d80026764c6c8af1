"""The VQGAN autoencoder: encoder, vector quantiser, decoder.

Esser et al., "Taming Transformers for High-Resolution Image Synthesis" (CVPR 2021). Configuration keys and state-dict
names are those of the taming-transformers package, so that its checkpoints load by name; the code is our own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


def _norm(channels: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, channels, eps=1e-6)


def _conv3(inputs: int, outputs: int, stride: int = 1, padding: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, stride=stride, padding=padding)


class ResnetBlock(nn.Module):
    """x [B,c,h,w] -> [B,outputs,h,w]: two normalised, activated 3 x 3 convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.norm1 = _norm(inputs, groups)
        self.conv1 = _conv3(inputs, outputs)
        self.norm2 = _norm(outputs, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _conv3(outputs, outputs)
        if inputs != outputs:
            self.nin_shortcut = nn.Conv2d(inputs, outputs, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """x [B,c,h,w] -> same shape: single-head self-attention over the h w positions, added to x."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = _norm(channels, groups)
        self.q = nn.Conv2d(channels, channels, kernel_size=1)
        self.k = nn.Conv2d(channels, channels, kernel_size=1)
        self.v = nn.Conv2d(channels, channels, kernel_size=1)
        self.proj_out = nn.Conv2d(channels, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2).transpose(1, 2) for layer in (self.q, self.k, self.v))  # [B, h*w, c]
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape)
        return x + self.proj_out(h)


class Downsample(nn.Module):
    """[B,c,h,w] -> [B,c,h/2,w/2] by a strided convolution padded on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """[B,c,h,w] -> [B,c,2h,2w]: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """The blocks of one resolution, each followed by attention if `attend`, then the change of resolution, if any."""

    def __init__(self, widths: Sequence[tuple[int, int]], attend: bool, dropout: float, groups: int) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(inputs, outputs, dropout, groups) for inputs, outputs in widths)
        self.attn = nn.ModuleList(AttnBlock(outputs, groups) for _, outputs in widths if attend)

    def forward(self, h: Tensor) -> Tensor:
        for number, block in enumerate(self.block):
            h = block(h)
            if len(self.attn):
                h = self.attn[number](h)
        for resize in ("downsample", "upsample"):
            if hasattr(self, resize):
                h = getattr(self, resize)(h)
        return h


class Middle(nn.Module):
    """Block, attention, block, at the coarsest resolution."""

    def __init__(self, channels: int, dropout: float, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, dropout, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, dropout, groups)

    def forward(self, h: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(h)))


class Encoder(nn.Module):
    """Images [B,in_channels,H,W] -> latents [B,z_channels,h,w], h = H / 2^(levels - 1) and w = W / 2^(levels - 1).

    resolution: the images' side, which with `attn_resolutions` says which levels have attention.
    """

    def __init__(
        self,
        *,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        in_channels: int,
        resolution: int,
        z_channels: int,
        double_z: bool = False,
        dropout: float = 0.0,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        self.conv_in = _conv3(in_channels, ch)
        self.down = nn.ModuleList()
        width = ch
        for number, multiple in enumerate(ch_mult):
            outputs = ch * multiple
            widths = [(width, outputs)] + [(outputs, outputs)] * (num_res_blocks - 1)
            level = Level(widths, (resolution >> number) in attn_resolutions, dropout, norm_groups)
            if number + 1 < len(ch_mult):
                level.downsample = Downsample(outputs)
            self.down.append(level)
            width = outputs
        self.mid = Middle(width, dropout, norm_groups)
        self.norm_out = _norm(width, norm_groups)
        self.conv_out = _conv3(width, 2 * z_channels if double_z else z_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(F.silu(self.norm_out(self.mid(h))))


class Decoder(nn.Module):
    """Latents [B,z_channels,h,w] -> images [B,out_ch,H,W]; with tanh_out a tanh follows, as in latent-diffusion."""

    def __init__(
        self,
        *,
        ch: int,
        out_ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        attn_resolutions: Sequence[int],
        resolution: int,
        z_channels: int,
        dropout: float = 0.0,
        norm_groups: int = 32,
        tanh_out: bool = False,
    ) -> None:
        super().__init__()
        self.tanh_out = tanh_out
        width = ch * ch_mult[-1]
        self.conv_in = _conv3(z_channels, width)
        self.mid = Middle(width, dropout, norm_groups)
        levels: list[Level] = []
        for number in reversed(range(len(ch_mult))):
            outputs = ch * ch_mult[number]
            widths = [(width, outputs)] + [(outputs, outputs)] * num_res_blocks
            level = Level(widths, (resolution >> number) in attn_resolutions, dropout, norm_groups)
            if number:
                level.upsample = Upsample(outputs)
            levels.insert(0, level)  # `up.0` is the finest level, as in the published names
            width = outputs
        self.up = nn.ModuleList(levels)
        self.norm_out = _norm(width, norm_groups)
        self.conv_out = _conv3(width, out_ch)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            h = level(h)
        pixels = self.conv_out(F.silu(self.norm_out(h)))
        return pixels.tanh() if self.tanh_out else pixels


class VectorQuantizer(nn.Module):
    """Holds the codebook C [K,d] as `embedding.weight`."""

    def __init__(self, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n_embed, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_embed, 1.0 / n_embed)


_SHARED = {"ch", "ch_mult", "num_res_blocks", "attn_resolutions", "resolution", "z_channels", "dropout", "norm_groups"}
_OF_ENCODER, _OF_DECODER = _SHARED | {"in_channels", "double_z"}, _SHARED | {"out_ch", "tanh_out"}
# Keys that can ask for another architecture, with the values that ask for this one.
_FIXED: dict[str, tuple[object, ...]] = {
    "resamp_with_conv": (True,),
    "give_pre_end": (False,),
    "use_linear_attn": (False,),
    "attn_type": ("vanilla", "vanilla-xformers"),
}


def _settings_of(ddconfig: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The encoder's and the decoder's settings. Raises ValueError, naming it, for an unknown key."""
    for name, value in ddconfig.items():
        if name in _FIXED:
            if value not in _FIXED[name]:
                raise ValueError(f"ddconfig: {name}: expected {' or '.join(map(repr, _FIXED[name]))}, got {value!r}")
        elif name not in _OF_ENCODER | _OF_DECODER:
            names = ", ".join(sorted(_OF_ENCODER | _OF_DECODER | set(_FIXED)))
            raise ValueError(f"ddconfig: unknown key {name}; known are {names}")
    encoder, decoder = ({k: v for k, v in ddconfig.items() if k in keys} for keys in (_OF_ENCODER, _OF_DECODER))
    return encoder, decoder


class VQModel(nn.Module):
    """An autoencoder with a codebook, configured by the keys of taming-transformers.

    Args:
        ddconfig: the encoder's and the decoder's settings. `tanh_out` is latent-diffusion's. `norm_groups` is our own
            addition, by default 32 as in the published models: with few channels, 32 groups would erase an image's mean
            colour.
        n_embed: K, codes of the codebook.
        embed_dim: d, their channels.

    Raises:
        ValueError: an unknown key, or a value that asks for another architecture; the message names it.
    """

    def __init__(self, *, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int) -> None:
        super().__init__()
        encoder_settings, decoder_settings = _settings_of(ddconfig)
        self.encoder = Encoder(**encoder_settings)
        self.decoder = Decoder(**decoder_settings)
        self.quantize: nn.Module = VectorQuantizer(n_embed, embed_dim)
        self.quant_conv = nn.Conv2d(ddconfig["z_channels"], embed_dim, kernel_size=1)
        self.post_quant_conv = nn.Conv2d(embed_dim, ddconfig["z_channels"], kernel_size=1)
        self.cell: int = 2 ** (len(ddconfig["ch_mult"]) - 1)  # pixels of a token along either side
        self.grid: int = ddconfig["resolution"] // self.cell  # m, at the configuration's resolution

    @property
    def codebook(self) -> Tensor:
        """C [K,d]."""
        return self.quantize.get_parameter("embedding.weight").detach()

    def latents(self, images: Tensor) -> Tensor:
        """Encode images, without quantisation.

        Args:
            images: float [B,3,H,W] in [-1,1].

        Returns:
            Continuous latents [B,d,h,w].
        """
        return self.quant_conv(self.encoder(images))

    def decode(self, embedding: Tensor) -> Tensor:
        """Decode embeddings.

        Args:
            embedding: E, float [B,d,h,w].

        Returns:
            Images [B,3,H,W], nominally in [-1,1].
        """
        return self.decoder(self.post_quant_conv(embedding))


class GumbelQuantizer(nn.Module):
    """The codebook C [K,d] as `embed.weight`, and `proj`, which maps a latent to a logit for each code."""

    def __init__(self, inputs: int, n_embed: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, n_embed, kernel_size=1)
        self.embed = nn.Embedding(n_embed, embed_dim)


class GumbelVQ(VQModel):
    """The autoencoder whose token is the code of the largest logit instead of the nearest code."""

    def __init__(self, *, ddconfig: Mapping[str, Any], n_embed: int, embed_dim: int) -> None:
        super().__init__(ddconfig=ddconfig, n_embed=1, embed_dim=embed_dim)
        self.quantize = GumbelQuantizer(ddconfig["z_channels"], n_embed, embed_dim)

    @property
    def codebook(self) -> Tensor:
        """C [K,d]."""
        return self.quantize.get_parameter("embed.weight").detach()

    def latents(self, images: Tensor) -> Tensor:
        """Encode images as the codes of largest logit, so that the nearest code is the token.

        Args:
            images: float [B,3,H,W] in [-1,1].

        Returns:
            Codes [B,d,h,w].
        """
        logits = self.quantize.get_submodule("proj")(super().latents(images))
        return F.embedding(logits.argmax(dim=1), self.codebook).permute(0, 3, 1, 2)
