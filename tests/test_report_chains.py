"""Runs of several chains: each deliberately bad one is named for what it is and nothing else, good ones have no finding."""

import functools

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import ctld_optax
from ctld_optax import AdaptiveBiasingForce, PolynomialTempering, diagnostics
from ctld_optax.posterior import sample

# By `sample`, judged as it comes back.


def two_modes(x):
    """Of equal weight, twelve deviations apart in each of two dimensions."""
    return -jnp.logaddexp(-0.5 * jnp.sum((x - 6.0) ** 2), -0.5 * jnp.sum((x + 6.0) ** 2))


def banana(x):
    return 0.5 * x[1] ** 2 + 2.0 * (x[0] - x[1] ** 2) ** 2


def quartic(x):
    """Without a curvature at its mode."""
    return jnp.sum(x**4)


def needle(x):
    """A thousand times the mass of what is around it, on a thousandth of the width."""
    wide, narrow = -0.5 * jnp.sum(x**2), -0.5 * jnp.sum(((x - 1.0) / 1e-3) ** 2)
    return -jnp.logaddexp(wide, narrow + 2.0 * jnp.log(1e3))


def edge(x):
    """Half of a step leads over it, of those that begin there."""
    return jnp.where(x[0] < 1.0, 0.5 * x[0] ** 2, jnp.inf)


def at(*places):
    """Where the chains begin, in two dimensions."""
    begin = iter(places)
    return lambda _key: jnp.full(2, next(begin))


LEFT = (6.0, 6.0, -6.0, 6.0)
# name: (finding, a word of what it says, target, beginning, options)
SAMPLED = {
    "a mode of one chain": ("mode_missed", "1 of 4 chains saw (chain 2)", two_modes, at(*LEFT), {}),
    "a mode that tempering does not reach": (
        "mode_missed",
        "(chain 2)",
        two_modes,
        at(*LEFT),
        {"tempering": PolynomialTempering(strength=0.5), "num_samples": 8_000},
    ),
    "a chain that is not finite": ("draws_not_finite", "in chain 2", two_modes, at(*LEFT), {"constrain": jnp.log1p}),
    "30 samples": ("too_few_draws", "120 draws of", two_modes, at(6.0, 6.0, 6.0, 6.0), {"num_samples": 30}),
    "a young bias": (
        "bias_filling",
        "mean force",
        two_modes,
        at(*LEFT),
        {
            "tempering": PolynomialTempering(strength=0.5),
            "num_warmup": 250,
            "bias": AdaptiveBiasingForce(min_samples=200.0),
        },
    ),
    "one window of warm-up": ("warmup_unfinished", "by a factor of", quartic, jnp.zeros(2), {"num_warmup": 250}),
    "a needle that the warm-up has not seen": (
        "steps_refused",
        "of its steps",
        needle,
        jnp.full(1, -0.5),
        {"tempering": PolynomialTempering(strength=0.5), "num_warmup": 250, "num_samples": 16_000},
    ),
    "an edge": ("steps_diverged", "were not taken", edge, jnp.zeros(1), {}),
}


@pytest.mark.parametrize("name", SAMPLED)
def test_a_bad_run_of_sample_is_named(name):
    wanted, words, loss, start, options = SAMPLED[name]
    report = diagnostics.report(sample(loss, start, 0, **{"num_samples": 1_000, **options}))
    assert [finding.name for finding in report.findings] == [wanted], str(report)
    assert words in report.findings[0].says
    assert all(np.isfinite(figure) for figure in report.figures.values())
    assert not report.unchecked


def test_good_runs_of_sample_have_no_finding():
    for data in (
        sample(two_modes, at(6.0, 6.0, 6.0, 6.0), 0, num_samples=1_000),
        sample(banana, jnp.zeros(2), 0, num_samples=4_000),
    ):
        report = diagnostics.report(data)
        assert report.healthy, str(report)
        assert not report.unchecked
        assert report.figures["smallest effective size"] == pytest.approx(
            min(float(arviz.ess(data, method=method).x.min()) for method in ("bulk", "tail")), rel=0.35
        )


# By hand: many chains at once, and their samples beside the trajectory.


def bowl(x):
    """Curvatures of 1, 4 and 1/4."""
    return 0.5 * jnp.sum(jnp.square(x) * jnp.asarray([1.0, 4.0, 0.25]))


def logarithms(x):
    """Of three Gamma(3) variates, as scales have."""
    return jnp.sum(jnp.exp(x) - 3.0 * x)


def valley(x):
    """So flat along the first axis that 4,000 steps lead nowhere."""
    return 0.5 * (1e-4 * x[0] ** 2 + x[1] ** 2 + x[2] ** 2)


def cliff(x):
    return jnp.where(x[0] > 50.0, jnp.nan, bowl(x))


def double_well(x):
    """Six deviations apart, of equal weight."""
    return -jnp.sum(jnp.logaddexp(-0.5 * (x - 3.0) ** 2, -0.5 * (x + 3.0) ** 2))


def tent(x):
    """Straight but for its top: a step that is too large does no more harm than to heat."""
    return 4.0 * jnp.sum(jnp.logaddexp(x, -x))


def far_wells(x):
    return -jnp.sum(jnp.logaddexp(-0.5 * (x - 6.0) ** 2, -0.5 * (x + 6.0) ** 2))


def chains(loss, starts, keys, num_steps, *, rates=0.1, thin=1, **options):
    """Trajectory, values, last states and samples of chains, with the leading axes of `keys`."""
    one = functools.partial(ctld_optax.posterior_sampler, temperature=1.0, **options)
    rates = jnp.broadcast_to(rates, keys.shape)

    def chain(start, key, rate):
        tx = one(rate, key=key)

        def step(carry, _):
            params, state = carry
            value, grads = jax.value_and_grad(loss)(params)
            updates, state = tx.update(grads, state, params, value=value)
            return (optax.apply_updates(params, updates), state), (diagnostics.snapshot(state), value, params, grads)

        def some(carry, _):
            carry, rows = jax.lax.scan(step, carry, length=thin)
            return carry, jax.tree.map(lambda row: row[-1], rows)

        (_, state), rows = jax.lax.scan(some, (start, tx.init(start)), length=num_steps // thin)
        return (*rows, state)

    run = chain
    for _ in keys.shape:
        run = jax.vmap(run)
    trajectory, value, samples, grads, state = jax.jit(run)(jnp.broadcast_to(starts, (*keys.shape, 3)), keys, rates)
    rows = {"value": value, "samples": {"x": samples}, "grads": {"x": grads}, "state": state}
    return trajectory, one(0.1, key=0), rows | {"num_params": 3}


UNTEMPERED = {"tempering": None}
KEYS = jax.random.split(jax.random.key(0), 4)
ORIGIN = jnp.zeros(3)


def off(place):
    """One of four begins elsewhere."""
    return ORIGIN * jnp.ones((4, 1)) + jnp.asarray([0.0, 0.0, 0.0, place])[:, None]


# name: (finding, a word of what it says, and the run)
BY_HAND = {
    "a chain with a tiny step": (
        "chain_stuck",
        "chain 3 hardly moved",
        lambda: chains(bowl, ORIGIN, KEYS, 4_000, rates=jnp.asarray([0.1, 0.1, 0.1, 1e-7]), **UNTEMPERED),
    ),
    "one key twice": (
        "replicas_share_noise",
        "4 replicas have 3 keys",
        lambda: chains(bowl, ORIGIN, KEYS[jnp.asarray([0, 1, 2, 2])], 4_000, **UNTEMPERED),
    ),
    "a flat valley": (
        "replicas_disagree",
        "R-hat of x[0]",
        lambda: chains(valley, 20.0 * jnp.linspace(-1.0, 1.0, 4)[:, None] * jnp.eye(3)[0], KEYS, 4_000, **UNTEMPERED),
    ),
    "a chain beyond a cliff": (
        "steps_skipped",
        "of replica 3 of 4",
        lambda: chains(cliff, off(60.0), KEYS, 4_000, **UNTEMPERED),
    ),
    "a large step": (
        "step_too_large",
        "k_B T per sqrt(d)",
        lambda: chains(tent, ORIGIN, KEYS, 4_000, rates=0.6, **UNTEMPERED),
    ),
    "a mode of one chain": (
        "mode_missed",
        "1 of 4 chains saw (chain 3)",
        lambda: chains(far_wells, off(12.0) - 6.0, KEYS, 4_000, **UNTEMPERED),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_a_bad_run_by_hand_is_named(name):
    wanted, words, run = BY_HAND[name]
    trajectory, one, rest = run()
    report = diagnostics.report(trajectory, one, **rest)
    *others, found = report.findings
    assert found.name == wanted, str(report)
    assert words in found.says
    assert [other.name for other in others] == ["kinetic_temperature"] * (wanted == "step_too_large"), str(report)


def test_every_finding_of_samples_has_a_bad_run():
    table = diagnostics.report.__doc__.split("=\n")[2]
    of_samples = {line.split()[0] for line in table.splitlines()[:-1] if "samples:" in line}
    assert of_samples <= {wanted for wanted, *_ in (*SAMPLED.values(), *BY_HAND.values())}
    assert len(of_samples) == 8


# The thresholds, each from just below and just above.


def independent(num_draws=1_000, **attrs):
    """Four chains of independent draws, as `sample` returns them."""
    rng = np.random.default_rng(0)
    stats = {"energy_error": np.zeros((4, num_draws)), "diverging": np.zeros((4, num_draws), bool)}
    data = arviz.from_dict(posterior={"x": rng.normal(size=(4, num_draws, 2))}, sample_stats=stats)
    data.sample_stats.attrs.update({"metric_change": 1.0, "num_params": 2} | attrs)
    return data


def shifted(by):
    """A chain apart: R-hat is about the root of one and the variance of the means."""
    data = independent(4_000)
    data.posterior.x.values[2, :, 1] += by
    return data


def of_step(error):
    data = independent()
    data.sample_stats.energy_error.values[:] = error * np.sqrt(2.0)
    return data


def not_taken(steps):
    data = independent()
    data.sample_stats.diverging.values[1, :steps] = True
    return data


def accepted(share):
    data = independent()
    data.sample_stats["acceptance_rate"] = data.sample_stats.energy_error + 0.95
    data.sample_stats.acceptance_rate.values[3] = share
    data.sample_stats.energy_error.values[:] = 10.0  # which then is no bias
    return data


def repeated(share):
    data = independent(4_000)
    x = data.posterior.x.values
    x[1, : int(share * 4_000)] = x[1, 0]
    return data


THRESHOLDS = {
    "independent draws": (independent, None),
    "R-hat of 1.048": (lambda: shifted(0.68), "too_few_draws"),  # by which the effective size falls too
    "R-hat of 1.054": (lambda: shifted(0.72), "replicas_disagree"),
    "an energy error of 0.24": (lambda: of_step(0.24), None),
    "an energy error of 0.26": (lambda: of_step(0.26), "step_too_large"),
    "a chain that takes 51 % of its steps": (lambda: accepted(0.51), None),
    "a chain that takes 49 % of its steps": (lambda: accepted(0.49), "steps_refused"),
    "a metric that changed by 3.9": (lambda: independent(metric_change=3.9), None),
    "a metric that changed by 4.1": (lambda: independent(metric_change=4.1), "warmup_unfinished"),
    "9 % of the bias missing": (lambda: independent(bias_missing=0.09), None),
    "11 % of the bias missing": (lambda: independent(bias_missing=0.11), "bias_filling"),
    "9 steps of 1,000 not taken": (lambda: not_taken(9), None),
    "11 steps of 1,000 not taken": (lambda: not_taken(11), "steps_diverged"),
    "800 draws": (lambda: independent(200), None),
    "320 draws": (lambda: independent(80), "too_few_draws"),
    "more than half repeated": (lambda: repeated(0.55), "chain_stuck"),
}


@pytest.mark.parametrize("name", THRESHOLDS)
def test_thresholds(name):
    made, wanted = THRESHOLDS[name]
    report = diagnostics.report(made())
    assert [finding.name for finding in report.findings] == ([wanted] if wanted else []), str(report)


def test_a_gap_counts_from_one_percent_of_the_draws_on():
    for number, wanted in ((39, []), (41, ["mode_missed"])):
        data = independent()
        data.posterior.x.values[3, :number, 0] += 12.0
        assert [finding.name for finding in diagnostics.report(data).findings] == wanted


def test_what_cannot_be_judged_is_said():
    one = independent().isel(chain=[0])
    assert diagnostics.report(one).unchecked == ("whether the chains agree: there is one.",)
    foreign = arviz.from_dict(posterior={"x": np.random.default_rng(0).normal(size=(4, 1_000))})
    report = diagnostics.report(foreign)
    assert report.healthy
    assert [reason.split(":")[0] for reason in report.unchecked] == [
        "steps that diverge",
        "the size of the step",
        "the warm-up",
    ]
    same = arviz.from_dict(posterior={"x": np.random.default_rng(0).normal(size=(4, 1_000)), "one": np.ones((4, 1_000))})
    assert diagnostics.report(same).figures == report.figures  # what does not move tells nothing


def test_wrong_samples_are_refused():
    trajectory, one, rest = chains(bowl, ORIGIN, KEYS, 100, **UNTEMPERED)
    with pytest.raises(
        ValueError, match=r"samples must have the leading axes of the trajectory, \(4, 100\), got .*\(4, 50, 3\)"
    ):
        diagnostics.report(trajectory, one, samples={"x": rest["samples"]["x"][:, :50]})
    with pytest.raises(TypeError, match=r"value must be left out beside an arviz\.InferenceData"):
        diagnostics.report(independent(), value=1.0)
    few = diagnostics.report(jax.tree.map(lambda row: row[:, :12], trajectory), one, samples=rest["samples"]["x"][:, :12])
    assert "the samples: a chain has too few at the base temperature." in few.unchecked


# 100 good runs of four chains each: the target, steps, rows are `thin` steps apart, options.
GOOD = {
    "Gaussian": (40, bowl, 8_000, 4, UNTEMPERED),
    "logarithms of Gamma variates": (40, logarithms, 8_000, 4, UNTEMPERED),
    "two wells, tempered": (20, double_well, 100_000, 10, {"alpha_step_size": 0.1}),
}


def test_false_alarms_of_a_hundred_good_runs():
    alarms = []
    for name, (number, loss, num_steps, thin, options) in GOOD.items():
        keys = jax.random.split(jax.random.key(1), (number, 4))
        trajectory, one, rest = chains(loss, ORIGIN, keys, num_steps, thin=thin, **options)
        for run in range(number):
            pick = functools.partial(jax.tree.map, lambda x, run=run: x[run])
            report = diagnostics.report(
                pick(trajectory), one, **{k: v if k == "num_params" else pick(v) for k, v in rest.items()}
            )
            alarms += [f"{name} {run}: {finding.name}, {finding.says}" for finding in report.findings]
    assert len(alarms) <= 2, "\n".join(alarms)
