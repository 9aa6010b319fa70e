"""Optimizers, learning-rate schedules and the clipping of gradients."""

from .optimizers import (
    SGD,
    Adam,
    AdamW,
    Constant,
    CosineWarmup,
    Optimizer,
    Plateau,
    RMSprop,
    Schedule,
    StepDecay,
    clip_grad_norm,
    clip_grad_value,
    from_config,
    grad_norm,
    schedule_from_config,
)

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "CosineWarmup",
    "Optimizer",
    "Plateau",
    "RMSprop",
    "Schedule",
    "StepDecay",
    "clip_grad_norm",
    "clip_grad_value",
    "from_config",
    "grad_norm",
    "schedule_from_config",
]
