"""Shared fixtures: one thread for torch (tiny models are faster so, and other processes disturb them less)."""

import pytest
import torch

import steer_heal.lm

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny():
    """`tiny-random`, shared by tests that leave it as it was."""
    return steer_heal.lm.load("tiny-random")
