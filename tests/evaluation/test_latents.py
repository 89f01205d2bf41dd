import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.stats
import torch
from sklearn.decomposition import PCA

from repae_jax.evaluation import latents


def mixed(channels, *, shape=(3, 8, 6), seed=0):
    """Correlated channels of clearly different variances, off centre, with a few outliers."""
    rng = np.random.default_rng(seed)
    sources = rng.normal(size=(*shape, channels)) * 2.0 ** -np.arange(channels)
    rotation, _ = np.linalg.qr(rng.normal(size=(channels, channels)))
    values = sources @ rotation + rng.normal(size=channels)
    values[0, 0, 0] += 50
    return values.astype(np.float32)


def reference_colours(values, count):
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    components = PCA(n_components=count, svd_solver="full").fit_transform(flat)
    low, high = np.percentile(components, (1, 99), axis=0)
    return (255 * np.clip((components - low) / (high - low), 0, 1)).reshape(*values.shape[:3], -1)


def assert_same_up_to_sign(colours, expected):
    for channel in range(expected.shape[-1]):
        ours, theirs = colours[..., channel].astype(float), expected[..., channel]
        off = min(np.abs(ours - theirs).max(), np.abs(ours - (255 - theirs)).max())
        assert off <= 0.51, f"component {channel}: {off} grey levels away"


@pytest.mark.parametrize("channels", [3, 4, 16])
def test_colours_are_the_principal_components_of_sklearn(channels):
    values = mixed(channels)
    (colours,) = latents.pca_colors([values])
    assert colours.dtype == np.uint8
    assert colours.shape == (3, 8, 6, 3)
    assert_same_up_to_sign(colours, reference_colours(values, 3))


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_channels_than_colours_repeat_the_last_component(channels):
    values = mixed(channels)
    (colours,) = latents.pca_colors([values])
    assert_same_up_to_sign(colours[..., :channels], reference_colours(values, channels))
    np.testing.assert_array_equal(colours[..., 2], colours[..., channels - 1])


def test_each_set_is_fitted_on_its_own():
    small, large = mixed(4), 1000 * mixed(8, shape=(2, 4, 4), seed=1)
    together = latents.pca_colors([small, large])
    np.testing.assert_array_equal(together[0], latents.pca_colors([small])[0])
    np.testing.assert_array_equal(together[1], latents.pca_colors([large])[0])


def test_spatial_variance_and_total_variation_equal_torch():
    values = mixed(4)
    x = torch.tensor(values, dtype=torch.float64)
    variance = torch.stack([image.reshape(-1, 4).var(0, unbiased=False) for image in x]).mean()
    assert latents.spatial_variance(values) == pytest.approx(float(variance), rel=1e-9)
    steps = (x[:, 1:] - x[:, :-1]).abs().sum() + (x[:, :, 1:] - x[:, :, :-1]).abs().sum()
    assert latents.total_variation(values) == pytest.approx(float(steps) / 3, rel=1e-9)
    even = np.broadcast_to(values[:, :1, :1], values.shape)  # differs between images alone
    assert latents.spatial_variance(even) == pytest.approx(0.0, abs=1e-12)
    assert latents.total_variation(even) == 0.0


def test_outliers_do_not_wash_the_picture_out():
    (colours,) = latents.pca_colors([mixed(4, shape=(8, 8, 8))])
    assert colours.reshape(-1, 3).std(0).min() > 40


def test_components_without_variance_are_grey():
    (flat,) = latents.pca_colors([np.full((2, 4, 4, 4), 7.3)])
    assert (flat == 128).all()
    line = np.linspace(-1, 1, 32).reshape(2, 4, 4, 1) * np.array([3.0, 1.0, -2.0, 0.5])
    (colours,) = latents.pca_colors([line])
    assert colours[..., 0].std() > 40
    assert (colours[..., 1:] == 128).all()


def test_statistics_match_torch():
    values = mixed(5)
    statistics = latents.latent_statistics(values)
    channels = torch.tensor(values, dtype=torch.float64).reshape(-1, 5)
    std, mean = torch.std_mean(channels, 0, correction=0)
    np.testing.assert_allclose(statistics.mean, mean, rtol=1e-10)
    np.testing.assert_allclose(statistics.std, std, rtol=1e-10)
    assert statistics.variance == pytest.approx(channels.var(correction=0).item(), rel=1e-10)


def test_variance_within_images_is_what_an_analysis_of_variance_leaves_over():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 4, 5, 1)) + 2 * rng.normal(size=(6, 1, 1, 1))
    images = values.reshape(6, 20)
    # F is the variance between images over that within: 5 and 114 degrees of freedom
    between_to_within = scipy.stats.f_oneway(*images).statistic * 5 / 114
    share = latents.variance_within(values)
    assert share == pytest.approx(1 / (1 + between_to_within))
    assert latents.variance_within(3 * values + 7) == pytest.approx(share)
    # Channels count by their variance
    both = np.concatenate([values, 10 * rng.normal(size=(6, 1, 1, 1)) * np.ones((6, 4, 5, 1))], -1)
    whole = both.var((0, 1, 2))
    assert latents.variance_within(both) == pytest.approx(share * whole[0] / whole.sum())
    assert np.isnan(latents.variance_within(np.ones((2, 3, 3, 1))))


def test_variance_in_common_is_what_an_analysis_of_variance_gives_positions():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 4, 5, 1)) + 2 * rng.normal(size=(1, 4, 5, 1))
    positions = values.reshape(6, 20).T
    # F with 19 and 100 degrees of freedom
    between_to_within = scipy.stats.f_oneway(*positions).statistic * 19 / 100
    share = latents.variance_in_common(values)
    assert share == pytest.approx(between_to_within / (1 + between_to_within))
    assert latents.variance_in_common(3 * values + 7) == pytest.approx(share)
    pattern = np.broadcast_to(rng.normal(size=(1, 4, 5, 2)), (6, 4, 5, 2))
    assert latents.variance_in_common(pattern) == pytest.approx(1)
    assert np.isnan(latents.variance_in_common(np.ones((2, 3, 3, 1))))


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 9, 9), (2, 6, 10)])
def test_spectrum_matches_scipy(shape):
    values = mixed(4, shape=shape)
    centred = values.astype(np.float64) - values.astype(np.float64).mean((0, 1, 2))
    transform = scipy.fft.fftn(centred, axes=(1, 2), norm="ortho")
    power = (transform * transform.conj()).real.mean((0, 3))
    side = min(shape[1:])
    y, x = np.meshgrid(*(scipy.fft.fftfreq(n) for n in shape[1:]), indexing="ij")
    rings = np.round(np.sqrt(y**2 + x**2) * side)
    expected = scipy.ndimage.mean(power, rings, np.arange(side // 2 + 1))
    frequencies, spectrum = latents.power_spectrum(values)
    np.testing.assert_allclose(spectrum, expected, rtol=1e-9)
    np.testing.assert_allclose(frequencies * side, np.arange(side // 2 + 1))


def test_spectrum_of_a_wave_peaks_at_its_frequency_and_of_noise_is_its_variance():
    wave = np.sin(2 * np.pi * 3 / 16 * np.arange(16))[None, None, :, None] * np.ones((1, 16, 1, 2))
    frequencies, power = latents.power_spectrum(wave)
    assert frequencies[power.argmax()] == 3 / 16
    assert np.delete(power, 3).max() < 1e-20
    noise = 5 + 2 * np.random.default_rng(0).normal(size=(400, 8, 8, 4))
    np.testing.assert_allclose(latents.power_spectrum(noise)[1], 4.0, rtol=0.05)


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3)), np.zeros((0, 4, 4, 3)),
                                 np.full((1, 2, 2, 3), np.nan)])  # fmt: skip
def test_refuses_what_is_not_a_set_of_latents(bad):
    for function in (
        latents.latent_statistics, latents.power_spectrum, latents.variance_within,
        latents.variance_in_common,
    ):  # fmt: skip
        with pytest.raises(ValueError, match="latents must be"):
            function(bad)
    with pytest.raises(ValueError, match="latents must be"):
        latents.pca_colors([bad])
