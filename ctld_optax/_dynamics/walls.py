"""What keeps alpha in its window, Eq. 11. Nothing here knows of the energy, of the parameters or of the bias."""

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ReflectingWall:
    """Hard walls at +-limit: alpha and r_alpha are mirrored there (the limit C -> infinity of Eq. 11)."""

    limit: float

    def advance(self, alpha: jax.Array, r_alpha: jax.Array, step_size: float) -> tuple[jax.Array, jax.Array]:
        """Alpha + h r_alpha folded into [-limit, limit], however many walls it crosses; and -1 where it turned, else 1."""
        # Unfold the mirrored corridor: it repeats after 4 * limit, and its second half runs backwards.
        position = jnp.mod(alpha + step_size * r_alpha + self.limit, 4.0 * self.limit)
        backwards = position > 2.0 * self.limit
        folded = jnp.where(backwards, 4.0 * self.limit - position, position) - self.limit
        inside = jnp.abs(alpha + step_size * r_alpha) <= self.limit
        # A step that meets no wall must not pay the rounding of the fold.
        advanced = jnp.where(inside, alpha + step_size * r_alpha, jnp.clip(folded, -self.limit, self.limit))
        return advanced, jnp.where(backwards & ~inside, -jnp.ones_like(alpha), jnp.ones_like(alpha))

    def force(self, alpha: jax.Array) -> jax.Array:
        """None: the walls act in `advance`."""
        return jnp.zeros_like(alpha)

    def images(self, alpha: jax.Array) -> tuple[jax.Array, ...]:
        """`alpha` and its mirror images in both walls, whose hills make a bias flat across the walls."""
        return alpha, 2.0 * self.limit - alpha, -2.0 * self.limit - alpha


@dataclasses.dataclass(frozen=True)
class ForceWall:
    """The paper's force well, Eq. 11: a constant force C towards zero beyond +-limit.

    The paper's Eq. 11 lacks sign(alpha); without it the left wall would push alpha further out.
    """

    limit: float
    constant: float

    def advance(self, alpha: jax.Array, r_alpha: jax.Array, step_size: float) -> tuple[jax.Array, jax.Array]:
        """Alpha + h r_alpha, beyond the wall too; it never turns."""
        return alpha + step_size * r_alpha, jnp.ones_like(alpha)

    def force(self, alpha: jax.Array) -> jax.Array:
        """-C sign(alpha) beyond the walls, 0 between them."""
        return jnp.where(jnp.abs(alpha) > self.limit, -self.constant * jnp.sign(alpha), 0.0)

    def images(self, alpha: jax.Array) -> tuple[jax.Array, ...]:
        """`alpha` alone: nothing is mirrored."""
        return (alpha,)


Walls = ReflectingWall | ForceWall
