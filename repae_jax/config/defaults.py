"""The default of every key of a configuration, and functions that make its sections.

A file in configs/ calls `base()` and changes the keys of its experiment. The keys:

    seed        the seed of initialization, data order and noise
    train       the networks to train: any of "backbone", "tokenizer", "discriminator"
    data        the source of the images
    tokenizer, backbone, discriminator, lpips, teachers   the networks
    projector   the map from the backbone's tokens to the teachers' widths
    condition   the conditioning of the backbone, and the probability of dropping it
    text_encoder   the frozen network whose states of captions condition the backbone
    objective   coefficients and variants of the loss (objectives/objective.py)
    time        the distribution of the diffusion times
    optimizer   one optimizer per trained network
    mesh        the axes of the devices, and the parts of the state that are sharded over them
    compute     rematerialization, loops and micro-batches, which trade time for memory
    sampling    the sampler
    evaluation  the measures taken during training, and their interval
    run         length and intervals of the run
"""

from typing import Any

from ml_collections import ConfigDict

from repae_jax.config.sections import section_of

NETWORKS = ("backbone", "tokenizer", "discriminator")


def base() -> ConfigDict:
    """Make a configuration with every key at its default: published REPA-E, ImageNet 256 x 256."""
    optimizer = dict(
        name="adamw",  # or "muon": orthogonalized steps of kernels, AdamW of the rest
        learning_rate=1e-4,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        max_grad_norm=1.0,  # inf: no clipping
        warmup_steps=0,
        decay="cosine",  # or "linear": how the rate falls
        decay_start=0,  # the step at which it begins to fall
        decay_steps=0,  # the step at which it has fallen; 0: a constant rate, as published
        final_rate=0.0,  # the rate from there on
    )
    return ConfigDict(
        dict(
            name="",
            seed=0,
            train=NETWORKS,
            batch_size=256,
            ema_decay=0.9999,
            tokenizer_ema_decay=0.0,  # of the trained tokenizer, by which a run gives it; 0: none
            dtype="float32",  # type of the networks' matrix products: "float32" or "bfloat16"
            data=dict(
                source="tfds",  # a key of `openers` in data/sources.py
                path="",  # the source's folder; tfds: the data directory ("" = default)
                name="",  # tfds: the builder, e.g. "imagenet2012"; scenes: the number of images
                resolution=256,
                num_classes=1000,
                flip=False,
                crop="adm",  # or torchvision's "bicubic", "bilinear", or "lanczos": a square first
                random_crop=0,  # shorter side of the pictures that training crops at random; 0: off
                exif=False,  # rotate images by their EXIF orientation; the original ignores it
                on_bad_image="error",  # or "skip": the next readable image takes its place
                workers=8,  # decoding processes; 0 decodes in threads
                accept="",  # to resume with changed data: the code that the error message gives
            ),
            tokenizer=tokenizer("f8d4"),
            backbone=backbone("SiT-XL/2"),
            condition=condition(),
            text_encoder=text_encoder(),
            projector=projector(),
            latent_norm=dict(momentum=0.1),
            discriminator=discriminator(),
            lpips=dict(weights="", vgg_weights="", rescale_inputs=True),
            teachers=dict(),
            objective=dict(
                interpolant="linear",
                least_time=0.0,  # the target is (x_t - x) / max(t, this); 0: the velocity
                noise_scale=1.0,  # standard deviation of the noise at t = 1
                backbone_alignment=0.5,
                tokenizer_alignment=1.5,
                alignment_end=0,  # the step at which the backbone's L_REPA ends; 0: never
                spatial_norm=0.0,  # iREPA's share of the teachers' mean to remove; 0: off
                stop_gradient=True,
                posterior="sample",  # or "mean": the latents of the encoder's posterior
                latent_norm="batch",
                latent_noise=0.0,  # of the decoder's latents, at most: RAE's tau; 0: off
                reconstruction="l1",
                reconstruction_weight=1.0,
                perceptual_weight=1.0,
                kl_weight=1e-6,
                prior_weight=0.0,  # LSGM's bound on the KL from the backbone as prior; 0: off
                prior_weighting="ll_iw",  # or "ll_uniform", "unweighted" (objectives/prior.py)
                prior_least_time=0.01,
                adversarial_weight=0.1,
                perceptual_start=0,  # the first step with LPIPS
                discriminator_start=0,
                discriminator_factor=1.0,
                generator_start=0,  # the first step with the tokenizer's adversarial term
                adaptive_weight=False,  # scale this term by the gradients at the last layer
                adaptive_epsilon=1e-6,
                adaptive_limit=1e4,
                augmentation="none",  # or "diffaug": of what the discriminator sees
                fake_latents="same",  # or "mean": what the discriminator's loss sees decoded
                fake_bytes=False,  # whether it sees these rounded to 8 bits
                vf_weight=0.0,  # of VF loss (VA-VAE), with the first teacher; 0: off
                vf_adaptive=True,  # scale it by the gradients at the encoder's last layer
                vf_distance_margin=0.25,
                vf_cosine_margin=0.5,
                lecam_weight=0.0,
                lecam_decay=0.999,
                cosine_weight=0.0,
                dispersive_weight=0.0,
                class_token_weight=0.03,  # of a class token that the backbone denoises (REG)
            ),
            time=dict(  # objectives/times.py
                weighting="uniform",  # or "lognormal", which reads mean and scale
                mean=0.0,
                scale=1.0,
                highest=1.0,  # truncate the distribution above this time
                grid=0,  # round times up to multiples of 1 / grid; 0: no
                shift=1.0,  # multiplies the odds t / (1 - t): above 1, more noise
            ),
            optimizer={name: dict(optimizer) for name in NETWORKS},
            mesh=dict(
                data=-1,  # devices along the axis that shards only the batch; -1: all remaining
                fsdp=1,  # devices along the axis that shards the batch and the parameters
                trained="sharded",  # parameters, moments, average, over fsdp; or "replicated"
                frozen="replicated",  # teachers, LPIPS, a frozen tokenizer; or "sharded"
                smallest=65_536,  # elements of the smallest array that is sharded
            ),
            compute=dict(
                micro_batches=1,  # number of micro-batches whose gradients are averaged
                scan_blocks=False,  # compile the blocks of backbone and teachers as one loop each
                backbone_remat="none",  # "products" or "blocks": see models/remat.py
                tokenizer_remat="none",
                stripes=0,  # most stripes per image (models/stripes.py); 0: by device and batch
            ),
            sampling=dict(
                method="euler-maruyama",  # or "euler", "heun"
                steps=250,
                guidance_scale=1.0,
                guidance_low=0.0,
                guidance_high=1.0,
                guidance_channels=0,  # guide the first N channels of the latents alone; 0: all
                class_token_guidance=0.0,  # its scale for a denoised class token; 0: guidance_scale
                guidance_rule="step",  # or "evaluation": each by its own time, without the ends
                shift=1.0,  # multiplies the odds t / (1 - t) of the steps' times
                last_time=0.0,  # the time before the shift at which an ODE ends
                smallest_time=0.0,  # ... of its last evaluation, before a step to 0; 0: even steps
            ),
            evaluation=dict(  # see training/online.py
                every=0,  # steps; 0: never
                samples=2000,  # generated images for the Fréchet distance; 0: none
                network="inception",  # feature network: FID's InceptionV3, or "teachers.NAME"
                weights="pretrained/inception/pt_inception-2015-12-05-6726825d.pth",  # InceptionV3
                reference="",  # images or their statistics; "": as many training images
                cknna_images=1000,  # held-out images for CKNNA; 0: none
                cknna_time=0.5,  # noise level of CKNNA's images, 0 to 1
            ),
            run=dict(
                steps=400_000,
                log_every=100,
                sample_every=10_000,
                sample_steps=50,
                checkpoint_every=50_000,
                keep_checkpoints=3,
                keep_every=0,  # checkpoints at multiples of this are kept forever; 0: none
                max_skipped=10,  # consecutive steps with a NaN or infinite loss or gradient
                data_timeout=600.0,  # seconds to wait for a batch
                on_collapse="warn",  # or "stop": see training/monitor.py
                wandb="",  # PROJECT or ENTITY/PROJECT of Weights & Biases; "": TensorBoard alone
            ),
        )
    )


def backbone(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.backbone`: a preset of a family (models/backbones), or every option by hand.

    Args:
      arch: a preset of any family, or "".
      family: needed only without a preset, which brings its own; "sit" by default.
      changes: the family's options, where None stands for the preset's value or the default.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("backbone", family, arch, **changes)


def tokenizer(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.tokenizer`: a preset of a family (models/tokenizers), or every size by hand.

    Args:
      arch: a preset of any family, or "".
      family: needed only without a preset, which brings its own; "kl" by default.
      changes: the family's options, where None stands for the preset's value or the default; and
        weights: "" trains from scratch; otherwise a file under LDM's names, a diffusers folder or
          the file of a variant in it, a work directory, or
          `hf://owner/repository[/folder][/file]`;
        statistics: latent statistics (.pt); "" looks beside `weights`, or measures them.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("tokenizer", family, arch, **changes)


def discriminator(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.discriminator`: of the tokenizer's adversarial term (models/discriminators.py).

    Args:
      arch: a preset of any family, or "".
      family: needed only without a preset, which brings its own; "patchgan" by default.
      changes: the family's options, where None stands for the preset's value or the default; and
        weights: "" trains from scratch; otherwise a file with the trained weights;
        encoder_weights: of the family "dino", the file of the frozen ViT.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("discriminator", family, arch, **changes)


def condition(family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.condition`: the conditioning (models/conditioning) and its drop probability.

    Args:
      family: the family; "class" by default.
      changes: the family's options, and
        drop: the probability with which training drops the condition; with 0 the backbone learns no
          null condition.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("condition", family, **changes)


def text_encoder(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.text_encoder`: a frozen encoder of captions (models/text_encoders).

    Args:
      arch: a preset of any family, or "" and a family with every size by hand.
      family: needed only without a preset, which brings its own; "none", a run without captions,
        by default.
      changes: the family's options, where None stands for the preset's value or the default; and
        weights: the folder or file that the authors publish, hf://owner/repository, or the file
          that `pretrain-text-encoder` writes;
        tokenizer: its tokenizer.json; "" looks beside `weights`;
        pretrain: options of `pretrain-text-encoder`.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("text_encoder", family, arch, **changes)


def projector(family: str = "", **changes: Any) -> ConfigDict:
    """Make `config.projector`: the map from backbone tokens to teacher widths (models/projectors).

    Args:
      family: the family; "mlp" by default.
      changes: the family's options.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("projector", family, **changes)


def teacher(arch: str = "", *, family: str = "", **changes: Any) -> ConfigDict:
    """Make one entry of `config.teachers`: a frozen encoder (models/encoders) and its weights.

    A preset also sets options fixed by its training, such as the preprocessing of a ViT.

    Args:
      arch: a preset of any family, or "".
      family: needed only without a preset, which brings its own; "vit" by default.
      changes: the family's options, where None stands for the preset's value or the default; and
        weights: the file that the authors publish or that `pretrain-teacher` writes;
        pretrain: options of `pretrain-teacher`.

    Raises:
      UserError: there is no such family or key.
    """
    return section_of("teacher", family, arch, **changes)
