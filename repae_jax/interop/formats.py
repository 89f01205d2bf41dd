"""The formats that `convert` reads and writes, in a module that --help imports quickly."""

FORMATS = {
    "run": "work directory of repae_jax",
    "repae": "training checkpoint of the original REPA-E: SiT, VAE and discriminator",
    "ldm": "training checkpoint of the original REPA-E's second stage: SiT on a frozen VAE",
    "repa": "training checkpoint of REPA: SiT on a frozen VAE",
    "lightningdit": "training checkpoint of LightningDiT: LightningDiT on a frozen VAE",
    "dit": "training checkpoint of DiT: DiT on a frozen VAE",
    "ditdh": "training checkpoint of RAE: DiT^DH on a frozen tokenizer",
    "ddt": "training checkpoint of diffusion-bench: DDT on a frozen VAE",
    "diffusers": "VAE as diffusers writes it",
    "diffusers-dit": "DiT as diffusers writes it",
    "vae": "VAE under LDM's names",
    "vae-tensors": "VAE under diffusers' names, without its config.json",
    "latents": "cached latents of repae_jax",
    "lightningdit-latents": "cached latents of LightningDiT (latents_rank*_shard*.safetensors)",
    "statistics": "latent statistics of a VAE (-latents-stats.pt)",
    "sit": "weights of a SiT",
    "lightningdit-tensors": "weights of a LightningDiT",
    "ddt-tensors": "weights of RAE's DiT^DH or of diffusion-bench's DDT",
    "discriminator": "weights of the discriminator",
    "lpips": "weights of LPIPS (VGG16, its linear heads, or both)",
    "teacher": "teacher trained by repae_jax",
    "vit": "weights of a teacher",
}

TARGETS = {
    "run": "a work directory that resumes training, samples, reports",
    "checkpoint": "the original's training checkpoint (.pt) with its args.json",
    "diffusers": "the VAE as a folder that diffusers opens",
    "transformer": "a DiT as a folder that diffusers opens (DiTTransformer2DModel)",
    "pipeline": "a DiT and its VAE as a folder that diffusers opens (DiTPipeline)",
    "vae": "the VAE under LDM's names (.pt or .safetensors), with its -latents-stats.pt",
    "latents": "a folder of cached latents to train on (config.data.source=latents)",
    "lightningdit-latents": "a folder of cached latents as LightningDiT reads it",
    "file": "the same tensors in the other container, .safetensors or .pt",
}
