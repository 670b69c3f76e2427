"""Algorithm 1 in float64 NumPy, from the text of the paper and in its variables.

Ye, Zhu and Mantiuk, NIPS 2017: Eq. 6, 7, 11, 13, 14 and Algorithm 1. Nothing here imports the package. Where the paper is
silent, the reading is the one that the docstring of `ctld_optax.algorithm1` announces: Eq. 11 has the sign of alpha, the
bias exerts no force outside its bins, and the caller gives gamma_alpha, C and K.
"""

import math

import numpy as np


class Algorithm1:
    """theta^(t), r^(t), alpha^(t), r_alpha^(t) and V_b^(t) on the K + 1 edges of the K bins."""

    def __init__(self, theta, r, r_alpha, *, eta, gamma, gamma_alpha, C, w, sigma, K, delta, delta_prime, S):
        self.theta, self.r = np.array(theta, np.float64), np.array(r, np.float64)
        self.alpha, self.r_alpha = 0.0, float(r_alpha)
        self.eta, self.gamma, self.gamma_alpha, self.C = eta, gamma, gamma_alpha, C
        self.w, self.sigma, self.K = w, sigma, K
        self.delta, self.delta_prime, self.S = delta, delta_prime, S
        self.edges = [-delta_prime + k * (2 * delta_prime / K) for k in range(K + 1)]
        self.V_b = [0.0] * (K + 1)

    def g(self, alpha):
        """Eq. 7."""
        if abs(alpha) <= self.delta:
            return 1.0
        if abs(alpha) >= self.delta_prime:
            return 1.0 - self.S
        z = (abs(alpha) - self.delta) / (self.delta_prime - self.delta)
        return 1.0 - self.S * (3 * z**2 - 2 * z**3)

    def dg(self, alpha):
        """Its derivative, d|alpha|/dalpha being the sign of alpha."""
        if not self.delta < abs(alpha) < self.delta_prime:
            return 0.0
        z = (abs(alpha) - self.delta) / (self.delta_prime - self.delta)
        return -self.S * (6 * z - 6 * z**2) / (self.delta_prime - self.delta) * math.copysign(1.0, alpha)

    def dphi(self, alpha):
        """Eq. 11 with the sign it lacks: the force -dphi pulls back from either side."""
        return 0.0 if abs(alpha) <= self.delta_prime else self.C * math.copysign(1.0, alpha)

    def bias_force(self, alpha):
        """The difference of the edges of bin k*, over its length."""
        length = 2 * self.delta_prime / self.K
        k = math.floor((alpha + self.delta_prime) / length)
        if not 0 <= k < self.K:
            return 0.0
        return (self.V_b[k + 1] - self.V_b[k]) / length

    def move(self):
        """The first line of either phase: theta^(t) = theta^(t-1) + eta r^(t-1)."""
        self.theta = self.theta + self.eta * self.r

    def sample(self, U, grad_U, epsilon, epsilon_alpha):
        """The rest of the if-branch; U and its gradient are taken at theta^(t)."""
        eta = self.eta
        noise = math.sqrt(2 * eta * self.gamma / self.g(self.alpha))
        self.r = (1 - eta * self.gamma) * self.r - grad_U * eta + noise * epsilon
        self.alpha = self.alpha + eta * self.r_alpha
        for k, edge in enumerate(self.edges):
            self.V_b[k] += self.w * math.exp(-((edge - self.alpha) ** 2) / (2 * self.sigma**2))
        H = U + 0.5 * float(np.sum(self.r**2))
        h = -self.dg(self.alpha) * H - self.dphi(self.alpha) - self.bias_force(self.alpha)
        self.r_alpha = (
            (1 - eta * self.gamma_alpha) * self.r_alpha + h * eta + math.sqrt(2 * eta * self.gamma_alpha) * epsilon_alpha
        )

    def optimize(self, grad_U):
        """The rest of the else-branch."""
        self.r = (1 - self.eta * self.gamma) * self.r - grad_U * self.eta
