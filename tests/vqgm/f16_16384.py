"""The configuration of the published ImageNet VQGAN that CORTEX explains."""

F16_16384 = {  # 343 state-dict keys, 76.07 M parameters
    "n_embed": 16384,
    "embed_dim": 256,
    "ddconfig": {
        "double_z": False,
        "z_channels": 256,
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": 128,
        "ch_mult": [1, 1, 2, 2, 4],
        "num_res_blocks": 2,
        "attn_resolutions": [16],
        "dropout": 0.0,
    },
}
