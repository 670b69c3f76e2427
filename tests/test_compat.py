"""The compatibility room: what stands in for newer names does what they do, on every version."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctld_optax._arrays import compat
from tests import versions


@pytest.fixture(params=["as it is here", "as in older JAX"])
def jax_of_old(request, monkeypatch):
    """JAX as it is, and without the names that the room asks for."""
    if request.param == "as in older JAX":
        for module, name in ((jax.tree, "broadcast"), (jax.lax, "axis_size"), (jax, "typeof")):
            monkeypatch.delattr(module, name, raising=False)
        monkeypatch.setattr(jax.tree_util, "keystr", lambda keys: "".join(map(str, keys)))


@pytest.mark.usefixtures("jax_of_old")
def test_axis_size():
    sizes = jax.vmap(lambda _: jnp.asarray(compat.axis_size("one")), axis_name="one")(jnp.zeros(3))
    assert sizes.tolist() == [3, 3, 3]

    def both(_):
        size = compat.axis_size(("one", "other"))
        assert isinstance(size, int)  # it goes into a shape
        return jnp.zeros(size)

    inner = jax.vmap(both, axis_name="one")
    assert jax.vmap(inner, axis_name="other")(jnp.zeros((2, 3))).shape == (2, 3, 6)
    assert compat.axis_size(()) == 1
    with pytest.raises(NameError, match="nowhere"):
        compat.axis_size("nowhere")


@pytest.mark.usefixtures("jax_of_old")
def test_broadcast():
    tree = {"a": [jnp.zeros(2), jnp.zeros(3)], "b": (jnp.zeros(1),), "none": None}
    spec = jax.sharding.PartitionSpec("x")  # a tuple in older JAX, and a leaf in all
    assert compat.broadcast(spec, tree) == {"a": [spec, spec], "b": (spec,), "none": None}
    assert compat.broadcast({"a": 1, "b": (2,), "none": None}, tree) == {"a": [1, 1], "b": (2,), "none": None}
    with pytest.raises(ValueError, match="b"):
        compat.broadcast({"a": 1}, tree)


class Pair(NamedTuple):
    first: int
    second: int


@pytest.mark.usefixtures("jax_of_old")
def test_path_name():
    paths = jax.tree_util.tree_leaves_with_path({"a": [1, {7: Pair(2, 3)}]})
    assert [compat.path_name(path, "/") for path, _ in paths] == ["a/0", "a/1/7/first", "a/1/7/second"]
    assert compat.path_name((), "/") == ""
    assert compat.path_name((jax.tree_util.FlattenedIndexKey(4),), ".") == "4"


@pytest.mark.usefixtures("jax_of_old")
def test_iota_and_an_array_without_explicit_sharding():
    sharding = compat.explicit_sharding(jnp.zeros((2, 3)))
    assert sharding is None
    np.testing.assert_array_equal(compat.iota(jnp.uint32, (2, 3), 1, sharding), [[0, 1, 2]] * 2)


@versions.EXPLICIT
def test_explicit_sharding():
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Explicit,))
    array = jax.device_put(jnp.zeros((2, 3)), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x", None)))

    @jax.jit
    def rows(array):
        sharding = compat.explicit_sharding(array)
        assert sharding is not None
        made = compat.iota(jnp.uint32, (2, 3), 0, sharding)
        assert compat.explicit_sharding(made) == sharding
        return made

    np.testing.assert_array_equal(rows(array), [[0] * 3, [1] * 3])


def test_x64():
    for enabled in (True, False):
        with compat.enable_x64(enabled):
            assert jnp.zeros(()).dtype == (jnp.float64 if enabled else jnp.float32)
            with compat.enable_x64(not enabled):
                assert jnp.zeros(()).dtype == (jnp.float32 if enabled else jnp.float64)
            assert jnp.zeros(()).dtype == (jnp.float64 if enabled else jnp.float32)
