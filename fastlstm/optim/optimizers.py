"""Optimizers in one pass over flat buffers. Results are those of ``torch.optim``.

Knows arrays by name and nothing of models. Norms and clipping are in ``clipping``, schedules of the learning rate in
``schedules``; both are named here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ..kernels import operations
from ..runtime import check
from ..runtime.arrays import as_numpy
from ..runtime.engine import serving
from ..runtime.params import Gradients, Parameters
from ..runtime.program import Later, at_once
from .clipping import clip_grad_norm, clip_grad_value, described, grad_norm, label
from .schedules import Constant, CosineWarmup, Plateau, Schedule, StepDecay, real
from .schedules import from_config as schedule_from_config

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

HYPERS = 16  # numbers that a kernel may be given; each takes the first of them


class Optimizer:
    """What all optimizers share: the learning rate, the number of steps done, and state arrays beside the parameters.

    One optimizer serves one set of parameters: its state goes with their names and shapes. One thread at a time steps it.

    Attributes
    ----------
    lr : float
        Learning rate of the next step; may be set.
    steps : int
        Steps done; may be set.
    """

    _options: ClassVar[tuple[str, ...]]
    _work: ClassVar[int] = 10  # operations for an element: decides about threads

    def __init__(self, lr: float, weight_decay: float) -> None:
        self._lr = real("lr", lr, 0.0, above=True)
        self.weight_decay = real("weight_decay", weight_decay, 0.0)
        self.steps = 0
        self._state: dict[str, dict[str, np.ndarray]] = {}  # by kind, then by the parameter's name

    @property
    def lr(self) -> float:
        """Learning rate of the next step; 0 is allowed here, as schedules may end there."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._lr = real("lr", value, 0.0)

    def _kinds(self) -> tuple[str, ...]:
        """What is kept for every parameter."""
        raise NotImplementedError

    def _numbers(self, scale: float) -> tuple[float, ...]:
        """The kernel's `hyper` for step number `steps`."""
        raise NotImplementedError

    def _run(self, size: int, param: np.ndarray, grad: np.ndarray, state: list[np.ndarray], hyper: Any) -> None:
        raise NotImplementedError

    def step(self, params: Mapping[str, np.ndarray], grads: Mapping[str, np.ndarray], *, scale: float = 1.0) -> None:
        """Change the parameters in place by one step against the gradients.

        After the first call no array of their size is allocated.

        Parameters
        ----------
        params : Parameters or mapping of str to ndarray
            Of a model or layer, whose version then counts up; or writable C-contiguous float32 or float64 arrays, each in
            memory that it shares with nothing else given.
        grads : mapping of str to ndarray
            Gradients of the same names, shapes and dtypes. They stay as they are.
        scale : float
            Factor on the gradients, applied on the way: ``min(1, max_norm / norm)`` clips them by norm. NaN leaves parameters
            and state as they are.

        Raises
        ------
        KeyError
            For a parameter without a gradient.
        TypeError, ValueError
            For arrays that do not fit each other or the optimizer's state; nothing has changed then.
        """
        if not isinstance(params, Parameters):
            self._update(params, grads, scale)
        elif isinstance(grads, Gradients):
            self._update({"": params.flat}, {"": grads.flat}, scale)
            params.bump()
        else:
            with params.edit() as views:
                self._update(views, grads, scale)

    def _update(self, params: Mapping[str, np.ndarray], grads: Mapping[str, np.ndarray], scale: float) -> None:
        changed, read = {}, {}
        for name, param in params.items():
            own, its = label("params", name), label("grads", name)
            check.buffer(own, param)
            if name not in grads:
                raise KeyError(f"grads has no {name!r}, which params has")
            grad = check.floats(its, grads[name])
            if grad.shape != param.shape or grad.dtype != param.dtype:
                raise ValueError(f"{its} is {described(grad)}; expected {described(param)}, as {own} is")
            changed[own], read[its] = param, grad
        check.apart(changed, read)
        self._check_state(params)
        self.steps += 1
        with at_once():
            for (name, param), grad in zip(params.items(), read.values(), strict=True):
                self._run(param.size, param, grad, self._of(name), self.hypers(param.dtype.name, scale))

    def _of(self, name: str) -> list[np.ndarray]:
        """The state beside a parameter."""
        return [self._state[kind][name] for kind in self._kinds()]

    def hypers(self, dtype: str, scale: float = 1.0) -> np.ndarray:
        """The kernel's `hyper` for step number `steps`: a new array [HYPERS] of the parameters' type."""
        hyper, numbers = np.zeros(HYPERS, dtype), self._numbers(float(scale))
        hyper[: len(numbers)] = numbers
        return hyper

    def beside(self, params: Parameters) -> list[np.ndarray]:
        """The state beside a model's flat buffer, made on the first call."""
        self._check_state({"": params.flat})
        return self._of("")

    @property
    def form(self) -> int:
        """What the kernel is told beside `hyper`: programs that were recorded with another one do not serve."""
        return 0

    def record(self, params: Parameters, grads: Gradients, state: list[np.ndarray], hyper: Later) -> None:
        """Run the kernel of a step on a model's flat buffers, to be recorded in a program."""
        self._run(params.flat.size, params.flat, grads.flat, state, hyper)

    def _check_state(self, params: Mapping[str, np.ndarray]) -> None:
        """Make the state arrays on the first step; later, see that they are these parameters'."""
        for kind in self._kinds():
            if kind not in self._state:
                self._state[kind] = {name: serving(p).zeros(*p.shape) for name, p in params.items()}
            for name, array in self._state[kind].items():
                if name not in params or params[name].shape != array.shape or params[name].dtype != array.dtype:
                    found = described(params[name]) if name in params else "missing"
                    raise ValueError(f"{label('params', name)} is {found}; this optimizer's state is for {described(array)}")
                if isinstance(array, np.ndarray) and not isinstance(params[name], np.ndarray):  # read from a file
                    self._state[kind][name] = serving(params[name]).located(array)
            if len(params) != len(self._state[kind]):
                raise ValueError(f"params are {list(params)}; this optimizer's state is for {list(self._state[kind])}")

    def state_arrays(self) -> dict[str, np.ndarray]:
        """Copies of the state: ``kind`` for a model's flat buffer, ``kind.name`` for parameters given one by one."""
        return {
            f"{kind}.{name}" if name else kind: np.array(as_numpy(array))
            for kind, of in self._state.items()
            for name, array in of.items()
        }

    def load_state_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state that `state_arrays` gave; an empty one starts anew. `steps` is to be set beside it.

        Raises
        ------
        TypeError, ValueError
            For arrays of another kind of optimizer, or of no float32 or float64.
        """
        state: dict[str, dict[str, np.ndarray]] = {}
        for key, array in arrays.items():
            kind, _, name = key.partition(".")
            if kind not in self._kinds():
                raise ValueError(f"state array {key!r} is not of {self!r}, which keeps {list(self._kinds())}")
            state.setdefault(kind, {})[name] = np.array(check.floats(key, array))
        if state and set(state) != set(self._kinds()):
            raise ValueError(f"state arrays are {sorted(arrays)}; {self!r} keeps {list(self._kinds())}")
        self._state = state

    @property
    def config(self) -> dict[str, Any]:
        """The type, the learning rate as it is now and the other arguments, as JSON can hold them."""
        return {"type": type(self).__name__, **{name: getattr(self, name) for name in self._options}}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in self._options)})"


class SGD(Optimizer):
    """Stochastic gradient descent, with momentum where given (Sutskever et al., ICML 2013).

    Parameters
    ----------
    lr : float
        Learning rate.
    momentum : float
        Part of the last step's direction that is kept; 0 for none.
    weight_decay : float
        This times the parameters is added to the gradients.
    nesterov : bool
        Nesterov's momentum; needs momentum.

    Examples
    --------
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> SGD(lr=0.1).step(params, {"w": np.array([1.0, -1.0])})
    >>> params["w"]
    array([0.9, 2.1])
    """

    _options = ("lr", "momentum", "weight_decay", "nesterov")

    def __init__(self, lr: float, momentum: float = 0.0, weight_decay: float = 0.0, nesterov: bool = False) -> None:
        super().__init__(lr, weight_decay)
        self.momentum = real("momentum", momentum, 0.0)
        self.nesterov = bool(nesterov)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is True; expected a momentum above 0 with it")

    def _kinds(self) -> tuple[str, ...]:
        return ("momentum",) if self.momentum else ()

    @property
    def form(self) -> int:
        """As of `Optimizer`."""
        return int(self.nesterov)

    def _numbers(self, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, self.momentum, -self._lr

    def _run(self, size: int, param: np.ndarray, grad: np.ndarray, state: list[np.ndarray], hyper: Any) -> None:
        buffer = state[0] if state else None
        serving(param).run(
            operations.Sgd(size=size, params=param, grads=grad, buffer=buffer, hyper=hyper, nesterov=self.form),
            work=size * self._work,
        )


class RMSprop(Optimizer):
    """Gradients over the root of their running mean square (Tieleman & Hinton 2012).

    Parameters
    ----------
    lr : float
        Learning rate.
    alpha : float
        Part of the mean square that is kept from step to step.
    eps : float
        Added to the root.
    weight_decay : float
        This times the parameters is added to the gradients.
    momentum : float
        Part of the last step's direction that is kept; 0 for none.
    """

    _options = ("lr", "alpha", "eps", "weight_decay", "momentum")

    def __init__(
        self, lr: float = 1e-2, alpha: float = 0.99, eps: float = 1e-8, weight_decay: float = 0.0, momentum: float = 0.0
    ) -> None:
        super().__init__(lr, weight_decay)
        self.alpha = real("alpha", alpha, 0.0, 1.0, below=True)
        self.eps = real("eps", eps, 0.0)
        self.momentum = real("momentum", momentum, 0.0)

    def _kinds(self) -> tuple[str, ...]:
        return ("square", "momentum") if self.momentum else ("square",)

    def _numbers(self, scale: float) -> tuple[float, ...]:
        return scale, self.weight_decay, self.momentum, -self._lr, self.alpha, 1.0 - self.alpha, self.eps

    def _run(self, size: int, param: np.ndarray, grad: np.ndarray, state: list[np.ndarray], hyper: Any) -> None:
        buffer = state[1] if len(state) > 1 else None
        serving(param).run(
            operations.Rmsprop(size=size, params=param, grads=grad, square=state[0], buffer=buffer, hyper=hyper),
            work=size * self._work,
        )


class Adam(Optimizer):
    """Adam (Kingma & Ba, ICLR 2015).

    Parameters
    ----------
    lr : float
        Learning rate.
    betas : tuple of float
        Parts of the running mean and mean square that are kept from step to step.
    eps : float
        Added to the root.
    weight_decay : float
        This times the parameters is added to the gradients.

    Examples
    --------
    >>> params = {"w": np.array([1.0, 2.0])}
    >>> Adam(lr=0.1).step(params, {"w": np.array([3.0, -0.5])})
    >>> params["w"].round(6)
    array([0.9, 2.1])
    """

    _options = ("lr", "betas", "eps", "weight_decay")

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0
    ) -> None:
        super().__init__(lr, weight_decay)
        try:
            first, second = betas
        except (TypeError, ValueError):
            raise ValueError(f"betas is {betas!r}; expected two numbers") from None
        self.betas = real("betas[0]", first, 0.0, 1.0, below=True), real("betas[1]", second, 0.0, 1.0, below=True)
        self.eps = real("eps", eps, 0.0)

    def _kinds(self) -> tuple[str, ...]:
        return "m", "v"

    def _decay(self) -> tuple[float, float]:
        """What of the parameters is added to the gradients, and what is kept of them."""
        return self.weight_decay, 1.0

    def _numbers(self, scale: float) -> tuple[float, ...]:
        (beta1, beta2), (decay, keep) = self.betas, self._decay()
        rate, unbias = self._lr / (1.0 - beta1**self.steps), 1.0 / math.sqrt(1.0 - beta2**self.steps)
        return scale, decay, keep, beta1, 1.0 - beta1, beta2, 1.0 - beta2, -rate, unbias, self.eps

    def _run(self, size: int, param: np.ndarray, grad: np.ndarray, state: list[np.ndarray], hyper: Any) -> None:
        m, v = state
        adam = operations.Adam(size=size, params=param, grads=grad, m=m, v=v, hyper=hyper)
        serving(param).run(adam, work=size * self._work)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019).

    Parameters
    ----------
    lr, betas, eps
        As for `Adam`.
    weight_decay : float
        Every step takes lr times this part off the parameters, past the gradients.
    """

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay)

    def _decay(self) -> tuple[float, float]:
        return 0.0, 1.0 - self._lr * self.weight_decay


_TYPES = {kind.__name__: kind for kind in (SGD, RMSprop, Adam, AdamW)}


def from_config(config: Mapping[str, Any]) -> Optimizer:
    """The optimizer that a `config` describes, without its state.

    Examples
    --------
    >>> from_config(Adam(lr=0.01).config)
    Adam(lr=0.01, betas=(0.9, 0.999), eps=1e-08, weight_decay=0.0)
    """
    options = dict(config)
    kind = options.pop("type", None)
    if kind not in _TYPES:
        raise ValueError(f"type is {kind!r}; expected one of {', '.join(_TYPES)}")
    lr = options.pop("lr", None)
    optimizer: Optimizer = _TYPES[kind](lr=1.0, **options)
    optimizer.lr = lr  # may be 0 at a schedule's end
    return optimizer
