"""What `convert` can write; apart from it, so that --help need not import it."""

TARGETS = {
    "run": "a work directory that goes on training, samples, reports",
    "checkpoint": "the original's training checkpoint (.pt) with its args.json",
    "diffusers": "a folder that diffusers opens",
    "vae": "the VAE under LDM's names (.pt or .safetensors), with its -latents-stats.pt",
    "file": "the same tensors in the other container, .safetensors or .pt",
}
