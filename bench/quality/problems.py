"""The problems of the study, by name."""

from bench.quality import burgers, digits, poisson, two_tasks, vae

PROBLEMS = {module.PROBLEM.name: module.PROBLEM for module in (digits, poisson, burgers, two_tasks, vae)}
