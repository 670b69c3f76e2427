"""What the pictures show: their text and figures read back from the axes, the rest compared with stored images."""

import base64
import json
import re

import matplotlib as mpl
import numpy as np
import pytest

mpl.use("agg")

import jax
import jax.numpy as jnp
import optax
from matplotlib import pyplot as plt
from matplotlib.testing.compare import compare_images

import ctld_optax
from ctld_optax import diagnostics, plotting
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


def test_ramp_says_what_to_take(ax):
    losses, temperatures = pictures.ramp()
    found = diagnostics.suggest_temperature(losses, temperatures)
    assert plotting.temperature_ramp(losses, temperatures, ax=ax) is ax
    assert [text.get_text() for text in ax.texts] == [f"take T = {found.temperature:.1e}"]
    (band,) = ax.patches
    np.testing.assert_allclose([band.get_x(), band.get_x() + band.get_width()], [found.temperature, found.lowest / 4.0])
    assert {"minibatch", "smoothed", "base to hottest"} == set(ax.get_legend_handles_labels()[1])
    assert ax.get_ylim()[1] < 5.0  # of the end of the ramp, 6 and more, nothing is to be seen


def test_ramp_without_a_suggestion_names_the_finding(ax):
    _, temperatures = pictures.ramp()
    plotting.temperature_ramp(np.full(temperatures.shape, 2.3), temperatures, ax=ax)
    assert [text.get_text() for text in ax.texts] == ["no_fall"]
    assert not ax.patches


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


def run(steps=600, sampling_steps=400, seed=0):
    """A short run in two phases: what `dashboard` takes."""
    sampler = ctld_optax.ctld(0.05, 0.01, key=seed)
    tx = ctld_optax.phase_switch(sampler, optax.sgd(0.05, 0.9), sampling_steps)

    def step(carry, _):
        params, state = carry
        value, grads = jax.value_and_grad(lambda p: 0.5 * jnp.sum(p**2))(params)
        updates, state = tx.update(grads, state, params, value=value)
        return (optax.apply_updates(params, updates), state), (diagnostics.snapshot(state), value, state.sampler)

    carry = jnp.ones(50), tx.init(jnp.ones(50))
    (_, state), (trajectory, value, states) = jax.jit(lambda c: jax.lax.scan(step, c, length=steps))(carry)
    return sampler, state, trajectory, value, states


def panels(figure):
    return {ax.get_label(): ax for ax in figure.axes}


def test_dashboard_shows_the_run():
    sampler, state, trajectory, value, _ = run()
    figure = plotting.dashboard(trajectory, sampler, value=value, num_params=50, state=state)
    shown = panels(figure)
    # The hand-over is found in the sampler's own count of steps.
    line = line_with(shown["temperature"], 400)
    np.testing.assert_allclose(line.get_ydata(), 1.0 / trajectory.beta[:400], rtol=1e-6)
    assert any(np.array_equal(line.get_xydata(), [[400.0, 0.0], [600.0, 0.0]]) for line in shown["temperature"].lines)
    dots = next(line for line in shown["energy"].lines if line.get_marker() == ".")
    np.testing.assert_allclose(dots.get_xydata().T, [1.0 / trajectory.beta[:400], value[:400]], rtol=1e-6)
    np.testing.assert_allclose(shown["kinetic"].lines[0].get_ydata(), 2.0 * trajectory.kinetic_energy[:400] / 50, rtol=1e-6)
    _, potential = diagnostics.bias_potential(state, ctld_optax.Metadynamics())
    np.testing.assert_allclose(shown["bias"].lines[0].get_ydata(), potential)
    (text,) = shown["report"].texts
    report = diagnostics.report(trajectory, sampler, value=value, num_params=50, state=state)
    assert all(name[:34] in text.get_text() for name in report.figures)
    plt.close(figure)


def test_dashboard_of_scalars_alone_says_what_it_lacks():
    figure = plotting.dashboard(run()[2])
    shown = panels(figure)
    assert [text.get_text() for text in shown["bias"].texts] == ["needs sampler and state="]
    assert [text.get_text() for text in shown["kinetic"].texts] == ["needs sampler and num_params="]
    assert shown["energy"].get_ylabel() == "kinetic energy"
    plt.close(figure)


def test_dashboard_of_rows_far_apart_counts_the_steps():
    _, _, trajectory, *_ = run()
    figure = plotting.dashboard(jax.tree.map(lambda row: row[9::10], trajectory))
    line = line_with(panels(figure)["temperature"], 40)
    np.testing.assert_array_equal(line.get_xdata(), np.arange(10, 401, 10))
    plt.close(figure)


def test_dashboard_says_what_is_wrong_with_a_run():
    """Momenta ten times as hot as the noise makes them."""
    sampler, _, trajectory, _, _ = run(4_000, 4_000)
    hot = trajectory._replace(kinetic_energy=10.0 * trajectory.kinetic_energy)
    for rows, expected in ((hot, "Not healthy: a finding"), (trajectory, "Healthy: no finding")):
        figure = plotting.dashboard(rows, sampler, num_params=50)
        assert panels(figure)["report"].get_title(loc="left") == expected
        plt.close(figure)


def test_dashboard_refuses_what_it_cannot_draw():
    sampler, _, trajectory, value, _ = run()
    with pytest.raises(ValueError, match="tempering=None"):
        plotting.dashboard(trajectory, ctld_optax.ctld(0.1, 0.1, key=0, tempering=None))
    with pytest.raises(ValueError, match=r"must have the shape of the trajectory, \(600,\), got \(599,\)"):
        plotting.dashboard(trajectory, sampler, value=value[:-1])
    with pytest.raises(ValueError, match="dashboard draws one run"):
        plotting.dashboard(jax.tree.map(lambda row: row[None], trajectory))


def test_filling_shows_each_moment(ax):
    bias = ctld_optax.Metadynamics()
    *_, states = run()
    moments = jax.tree.map(lambda row: row[99:400:100], states)
    film = plotting.bias_filling(moments, bias, ax=ax)
    ax.figure.canvas.draw()  # starts it
    heights = []
    for frame in range(4):
        film._draw_frame(frame)
        line, dot = ax.lines[-2:]
        assert dot.get_xdata() == [pytest.approx(float(moments.alpha[frame]))]
        assert dot.get_ydata() == [pytest.approx(np.interp(dot.get_xdata()[0], *line.get_xydata().T))]
        heights.append(line.get_ydata().sum())
        assert ax.texts[0].get_text() == f"step {100 * (frame + 1)}"
    assert np.all(np.diff(heights) > 0.0)  # it fills
    with pytest.raises(ValueError, match="stacked along one axis of moments"):
        plotting.bias_filling(jax.tree.map(lambda row: row[0], moments), bias, ax=ax)


def many_runs():
    """Two knobs, (2, 3) runs of 50 rows, each of them another."""
    alpha = np.linspace(-1.5, 1.5, 300).reshape(2, 3, 50)
    beta = np.linspace(0.2, 1.0, 300).reshape(2, 3, 50)
    return diagnostics.Snapshot(alpha, alpha, alpha, beta, alpha, alpha, alpha, alpha)


def unpacked(text, shape):
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape) / 255


def test_explorer_holds_every_run():
    shown = plotting.explorer(many_runs(), {"a < b": [1e-3, 2], "kind": ["x", "y", "z"]}, readings={"trips": np.ones((2, 3))})
    page = shown._repr_html_()
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)[1])
    np.testing.assert_allclose((unpacked(data["alpha"], (2, 3, 50)) - 0.5) * 2 * data["limit"], many_runs().alpha, atol=0.006)
    heat = data["hottest"] ** unpacked(data["heat"], (2, 3, 50))
    np.testing.assert_allclose(heat, 1.0 / many_runs().beta, rtol=0.01)
    assert [knob["values"] for knob in data["knobs"]] == [["0.001", "2"], ["x", "y", "z"]]
    assert "a &lt; b" in page
    assert not re.search(r"(src|href)=|https?://(?!www\.w3\.org)", page)  # it needs nothing else


def test_explorer_page_is_one_file(tmp_path):
    plotting.explorer(many_runs(), {"a": [1, 2], "b": [1, 2, 3]}, max_rows=10).save(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.startswith("<!doctype html>")
    assert text.count('type="range"') == 2
    assert '"step": [1, 6, 11, 16, 21, 26, 31, 36, 41, 46]' in text


def test_explorer_wants_an_axis_for_each_knob():
    with pytest.raises(ValueError, match=r"say \(3, 'rows'\), alpha has shape \(2, 3, 50\)"):
        plotting.explorer(many_runs(), {"a": [1, 2, 3]})
    with pytest.raises(ValueError, match=r"readings\['trips'\] must have the shape of the knobs, \(2, 3\), got \(2,\)"):
        plotting.explorer(many_runs(), {"a": [1, 2], "b": [1, 2, 3]}, readings={"trips": np.ones(2)})
