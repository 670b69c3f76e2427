"""What the pictures show, read back from the axes."""

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("agg")

import jax.numpy as jnp
from matplotlib import pyplot as plt

import ctld_optax
from ctld_optax import plotting


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def line_with(ax, size):
    return next(line for line in ax.lines if len(line.get_ydata()) == size)


def test_temperature_is_drawn_up_to_the_hand_over_and_zero_after(ax):
    beta = np.linspace(1.0, 0.15, 100)
    assert plotting.temperature_trajectory(beta, switch_step=60, ax=ax) is ax
    np.testing.assert_allclose(line_with(ax, 60).get_ydata(), 1.0 / beta[:60])
    after = line_with(ax, 2)
    assert any(np.array_equal(line.get_xydata(), [[60.0, 0.0], [100.0, 0.0]]) for line in ax.lines), after
    assert "hand-over" in " ".join(text.get_text() for text in ax.texts)
    assert ax.get_xlabel() == "step"
    assert "temperature" in ax.get_ylabel()


def test_temperature_of_several_runs_at_once_is_refused(ax):
    with pytest.raises(ValueError, match=r"shape \(steps,\), got \(2, 5\)"):
        plotting.temperature_trajectory(np.ones((2, 5)), ax=ax)


def test_occupation_integrates_to_one_and_shows_uniform(ax):
    alpha = np.random.default_rng(0).uniform(-1.5, 1.5, (3, 500))
    assert plotting.alpha_occupation(alpha, ax=ax) is ax
    stairs = next(patch for patch in ax.patches if hasattr(patch, "get_data"))
    values, edges, _ = stairs.get_data()
    assert np.sum(values * np.diff(edges)) == pytest.approx(1.0)
    np.testing.assert_allclose(line_with(ax, 2).get_ydata(), 1.0 / 3.0)
    labels = ax.get_legend_handles_labels()[1]
    assert {"visited", "uniform"} <= set(labels)


def test_free_energy_is_the_scaled_mirror_image_of_the_bias(ax):
    bias = ctld_optax.Metadynamics(num_bins=50, bias_factor=4.0)
    state = ctld_optax.ctld(0.01, 1e-3, key=0, bias=bias).init(jnp.zeros(2))
    state = state._replace(bias=bias.deposit(state.bias, jnp.float32(0.0), 1.5, mirrored=True))
    assert plotting.bias_potential(state, bias, ax=ax) is ax
    potential, free_energy = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(free_energy + 4.0 / 3.0 * potential, np.full(51, free_energy.max()), atol=1e-9)


def test_adaptive_force_implies_the_free_energy_itself(ax):
    bias = ctld_optax.AdaptiveBiasingForce(num_bins=50)
    state = ctld_optax.ctld(0.01, 1e-3, key=0, bias=bias).init(jnp.zeros(2))
    for _ in range(30):
        state = state._replace(bias=bias.deposit(state.bias, jnp.float32(0.5), 1.5, force=jnp.float32(2.0), mirrored=True))
    plotting.bias_potential(state, bias, ax=ax)
    potential, free_energy = (line.get_ydata() for line in ax.lines)
    assert potential.max() > 0.01
    np.testing.assert_allclose(free_energy + potential, np.full(51, potential.max()), atol=1e-6)


def test_plain_hills_imply_no_free_energy(ax):
    bias = ctld_optax.Metadynamics(bias_factor=None)
    plotting.bias_potential(ctld_optax.ctld(0.01, 1e-3, key=0, bias=bias).init(jnp.zeros(2)), bias, ax=ax)
    assert len(ax.lines) == 1


def test_current_axes_are_the_default():
    figure = plt.figure()
    assert plotting.alpha_occupation([0.1, 0.2]) in figure.axes
    plt.close(figure)
