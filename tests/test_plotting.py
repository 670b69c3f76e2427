"""What the pictures show: their text and figures read back from the axes, the rest compared with stored images."""

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("agg")

import jax
import jax.numpy as jnp
from matplotlib import pyplot as plt
from matplotlib.testing.compare import compare_images

import ctld_optax
from ctld_optax import plotting
from ctld_optax._dynamics.grid import Visit
from ctld_optax._dynamics.walls import ReflectingWall
from tests import pictures


@pytest.fixture
def ax():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def line_with(ax, size):
    return next(line for line in ax.lines if len(line.get_ydata()) == size)


# Without text, what is left to differ between machines is the antialiasing of edges. The root-mean-square distance of the
# pixels (of 255) is 0 on one machine. Of 23 wrong changes tried, from a missing line to a colour, a line style or a curve that
# is 2 % off, the smallest made 1.2.
@pytest.mark.parametrize("name", pictures.PICTURES)
def test_pictures_look_as_they_did(name, tmp_path):
    pictures.save(name, tmp_path / f"{name}.png")
    difference = compare_images(str(pictures.BASELINE / f"{name}.png"), str(tmp_path / f"{name}.png"), tol=1.0)
    assert difference is None, difference


def test_temperature_is_drawn_up_to_the_hand_over_and_zero_after(ax):
    beta = np.linspace(1.0, 0.15, 100)
    assert plotting.temperature_trajectory(beta, switch_step=60, ax=ax) is ax
    np.testing.assert_allclose(line_with(ax, 60).get_ydata(), 1.0 / beta[:60])
    after = line_with(ax, 2)
    assert any(np.array_equal(line.get_xydata(), [[60.0, 0.0], [100.0, 0.0]]) for line in ax.lines), after
    assert "hand-over" in " ".join(text.get_text() for text in ax.texts)
    assert ax.get_xlabel() == "step"
    assert "temperature" in ax.get_ylabel()


def test_temperature_at_recorded_steps_only(ax):
    step = np.arange(10, 101, 10)
    plotting.temperature_trajectory(np.linspace(1.0, 0.5, 10), step=step, switch_step=60, ax=ax)
    np.testing.assert_array_equal(line_with(ax, 6).get_xdata(), step[:6])
    assert any(np.array_equal(line.get_xydata(), [[60.0, 0.0], [100.0, 0.0]]) for line in ax.lines)
    with pytest.raises(ValueError, match=r"each of the 10 entries, got shape \(9,\)"):
        plotting.temperature_trajectory(np.linspace(1.0, 0.5, 10), step=step[:9], ax=ax)


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
    state = state._replace(bias=bias.deposit(state.bias, Visit(jnp.float32(0.0)), ReflectingWall(1.5)))
    assert plotting.bias_potential(state, bias, ax=ax) is ax
    potential, free_energy = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(free_energy + 4.0 / 3.0 * potential, np.full(51, free_energy.max()), atol=1e-9)


def test_adaptive_force_implies_the_free_energy_itself(ax):
    bias = ctld_optax.AdaptiveBiasingForce(num_bins=50)
    state = ctld_optax.ctld(0.01, 1e-3, key=0, bias=bias).init(jnp.zeros(2))
    for _ in range(30):
        state = state._replace(bias=bias.deposit(state.bias, Visit(jnp.float32(0.5), jnp.float32(2.0)), ReflectingWall(1.5)))
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


def test_kinetic_temperature_stands_beside_its_discrete_target(ax):
    trajectory = pictures.walk()
    assert plotting.kinetic_temperature(trajectory, 50, 0.01, step=np.arange(400) * 7, ax=ax) is ax
    measured, target = (line.get_ydata() for line in ax.lines)
    np.testing.assert_allclose(measured, trajectory.kinetic_energy / 25.0)
    np.testing.assert_allclose(target, 0.01 / trajectory.beta, rtol=1e-6)
    assert ax.lines[0].get_xdata()[-1] == 399 * 7
    assert {"measured", "target", "two standard deviations"} == set(ax.get_legend_handles_labels()[1])


def test_kinetic_temperature_of_several_runs_at_once_is_refused(ax):
    runs = jax.tree.map(lambda row: np.stack([row, row]), pictures.walk())
    with pytest.raises(ValueError, match=r"kinetic_energy must have shape \(steps,\), got \(2, 400\)"):
        plotting.kinetic_temperature(runs, 50, 0.01, ax=ax)


def test_phase_portrait_pools_and_thins(ax):
    rng = np.random.default_rng(0)
    alpha, r_alpha = rng.uniform(-1.5, 1.5, (4, 500)), rng.normal(size=(4, 500))
    assert plotting.phase_portrait(alpha, r_alpha, max_points=700, ax=ax) is ax
    points = ax.collections[0]
    np.testing.assert_allclose(points.get_offsets(), np.stack([alpha.ravel()[::3], r_alpha.ravel()[::3]], axis=-1))
    expected = 1.0 / ctld_optax.PolynomialTempering().beta(jnp.asarray(alpha.ravel()[::3]))
    np.testing.assert_allclose(points.get_array(), expected, rtol=1e-6)
    assert any("temperature" in other.get_ylabel() for other in ax.figure.axes)


def test_phase_portrait_shows_momenta_that_are_far_out(ax):
    plotting.phase_portrait([0.0, 0.1], [40.0, -1.0], ax=ax)
    assert ax.get_ylim()[1] > 40.0


def test_phase_portrait_wants_pairs(ax):
    with pytest.raises(ValueError, match="got 3 and 2"):
        plotting.phase_portrait([0.0, 0.1, 0.2], [0.0, 0.1], ax=ax)


def test_cloud_is_thinned_evenly_and_lies_over_the_density(ax):
    samples = pictures.cloud()
    assert plotting.sample_cloud(samples, energy=pictures.two_wells, max_points=100, label="here", ax=ax) is ax
    np.testing.assert_array_equal(ax.lines[0].get_xydata(), samples.reshape(-1, 2)[::3])
    assert ax.get_legend_handles_labels()[1] == ["here"]
    (contours,) = ax.collections
    np.testing.assert_allclose(contours.levels, np.arange(1.0, 7.0), atol=0.01)


def test_cloud_keeps_to_its_limits(ax):
    plotting.sample_cloud([[0.0, 1.0]], limits=((-2.0, 3.0), (-4.0, 5.0)), ax=ax)
    assert (ax.get_xlim(), ax.get_ylim()) == ((-2.0, 3.0), (-4.0, 5.0))
    assert not ax.collections


@pytest.mark.parametrize("shape", [(10, 3), (0, 2), (2, 2, 1)])
def test_cloud_wants_two_coordinates(ax, shape):
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\., 2\), got"):
        plotting.sample_cloud(np.zeros(shape), ax=ax)
