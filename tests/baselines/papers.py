"""The baselines in float64 NumPy, from the texts of their papers and in their variables. Nothing here imports the package.

Each class has the parameters theta and a `step(gradient, epsilon)`, where `gradient` is that of the potential U (the negative
log posterior, a sum over N examples) and `epsilon` standard normal noise.
"""

import numpy as np


class SGLD:
    """Welling and Teh 2011, Eq. 4: delta theta = epsilon_t / 2 * grad log posterior + eta_t, eta_t ~ N(0, epsilon_t)."""

    def __init__(self, theta, epsilon_t):
        self.theta, self.epsilon_t = np.array(theta, np.float64), epsilon_t

    def step(self, gradient, epsilon):
        self.theta = self.theta - self.epsilon_t / 2 * gradient + np.sqrt(self.epsilon_t) * epsilon


class SGHMC:
    """Chen, Fox and Guestrin 2014, Eq. 15: v with learning rate eta and momentum 1 - alpha, beta_hat = 0.

    The gradient is taken after theta has moved, as in their Algorithm 2.
    """

    def __init__(self, theta, v, eta, alpha):
        self.theta, self.v, self.eta, self.alpha = np.array(theta, np.float64), np.array(v, np.float64), eta, alpha

    def step(self, gradient, epsilon):
        self.v = self.v - self.eta * gradient - self.alpha * self.v + np.sqrt(2 * self.alpha * self.eta) * epsilon
        self.theta = self.theta + self.v


class BAOAB:
    """Leimkuhler and Matthews 2013, unit mass, k_B T = 1: half kick, half drift, friction and noise, half drift, half kick.

    `step` begins behind the first half kick's force: the second half kick of one step and the first of the next have the same
    force and are made together.
    """

    def __init__(self, theta, p, dt, gamma):
        self.theta, self.p, self.dt, self.gamma = np.array(theta, np.float64), np.array(p, np.float64), dt, gamma

    def step(self, gradient, epsilon):
        self.p = self.p - self.dt / 2 * gradient - self.dt / 2 * gradient
        self.theta = self.theta + self.dt / 2 * self.p
        c = np.exp(-self.gamma * self.dt)
        self.p = c * self.p + np.sqrt(1 - c * c) * epsilon
        self.theta = self.theta + self.dt / 2 * self.p


class AnnealSGD:
    """Neelakantan et al. 2015, Eq. 1: g + N(0, sigma_t^2), sigma_t^2 = eta / (1 + t)^gamma, then SGD with or without momentum.

    Here U is the loss itself, a mean.
    """

    def __init__(self, theta, learning_rate, eta, momentum, gamma=0.55):
        self.theta, self.m, self.t = np.array(theta, np.float64), np.zeros(len(theta)), 0
        self.learning_rate, self.eta, self.momentum, self.gamma = learning_rate, eta, momentum, gamma

    def step(self, gradient, epsilon):
        sigma_t = np.sqrt(self.eta / (1 + self.t) ** self.gamma)
        self.m = self.momentum * self.m + (gradient + sigma_t * epsilon)
        self.theta = self.theta - self.learning_rate * self.m
        self.t += 1


class Santa:
    """Chen et al. 2016, Algorithm 2, with the three readings that the docstring of `santa` announces.

    The term with 1/u is left out, the noise is that of the stochastic differential equation, and g_0 is g_1.
    """

    def __init__(self, theta, u, *, eta, N, C, sigma, lambda_, gamma, burnin):
        self.theta, self.u = np.array(theta, np.float64), np.array(u, np.float64)
        self.v, self.alpha, self.g, self.t = np.zeros(len(theta)), np.full(len(theta), np.sqrt(eta) * C), None, 0
        self.eta, self.N, self.sigma, self.lambda_, self.gamma, self.burnin = eta, N, sigma, lambda_, gamma, burnin

    def step(self, f, zeta):
        self.t += 1
        eta, beta = self.eta, self.t**self.gamma
        self.v = self.sigma * self.v + (1 - self.sigma) / self.N**2 * f * f
        old_g, self.g = self.g, 1 / np.sqrt(self.lambda_ + np.sqrt(self.v))
        old_g = self.g if old_g is None else old_g
        self.theta = self.theta + self.g * self.u / 2
        if self.t < self.burnin:
            self.alpha = self.alpha + (self.u * self.u - eta / beta) / 2
            u = np.exp(-self.alpha / 2) * self.u
            u = u - self.g * f * eta + np.sqrt(2 * old_g * eta**1.5 / beta) * zeta
            self.u = np.exp(-self.alpha / 2) * u
            self.alpha = self.alpha + (self.u * self.u - eta / beta) / 2
        else:
            u = np.exp(-self.alpha / 2) * self.u
            u = u - self.g * f * eta
            self.u = np.exp(-self.alpha / 2) * u
        self.theta = self.theta + self.g * self.u / 2
