"""What the estimators of series share: arguments, reading of X, the training loop, pickles and files.

Knows scikit-learn's conventions and nothing of what an estimator is for.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from ...files import schema
from ...files.records import COUNT, SIZE, check_moments, check_stored
from ...optim.schedules import real
from ...runtime import check
from ...shape import DTYPES
from ...training.checkpoint import CheckpointError, plain, read_checkpoint, write_checkpoint
from .network import CELLS, Batch, learn, optimizer_of
from .panel import Moments, Panel, is_panel, panel_of_series, panel_of_table
from .store import ARRAY, OPTIMIZER, TEXTS, pack_all, packed, plain_of, unpack_all, unpacked

CHUNK = 1024  # series that are read at a time when nothing is learnt


class SeriesEstimator(BaseEstimator):  # type: ignore[misc]
    """What the three share: reading of X, the training loop, pickles and files."""

    cell: str
    dtype: str
    epochs: int | None
    batch_size: int
    dropout: float
    learning_rate: float
    weight_decay: float
    random_state: Any

    _fitted: ClassVar[dict[str, schema.Check]] = {  # what a file holds of each fitted attribute
        "optimizer_": OPTIMIZER,
        "loss_curve_": ARRAY,
        "seed_": plain_of(COUNT),
        "n_features_in_": plain_of(SIZE),
        "n_variables_": plain_of(SIZE),
        "table_": plain_of(schema.flag),
        "feature_names_in_": TEXTS,
    }
    _names: ClassVar[str] = "feature_names_in_"  # there only if the columns of a table had names

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.three_d_array = True
        return tags

    def _check_params(self) -> None:
        check.choice("cell", self.cell, tuple(CELLS))
        check.choice("dtype", self.dtype, DTYPES)
        for name in ("hidden_size", "num_layers", "batch_size"):
            check.positive(name, getattr(self, name))
        check.probability("dropout", self.dropout)
        real("learning_rate", self.learning_rate, 0.0, above=True)
        real("weight_decay", self.weight_decay, 0.0)

    # Reading

    def _panel(self, X: Any, reset: bool, grows: bool = False) -> Panel:
        """X as a panel; with `reset` its width is learnt, else it is checked."""
        table = not is_panel(X)
        panel = panel_of_table(self._table(X, reset, grows)) if table else panel_of_series(X)
        if reset:
            self.n_variables_, self.table_ = panel.variables, table
            if not table:
                self.n_features_in_ = panel.variables
                self.__dict__.pop(self._names, None)
        elif panel.variables != self.n_variables_:
            raise ValueError(f"X has {panel.variables} variables; expected {self.n_variables_}, as in fit")
        return panel

    def _table(self, X: Any, reset: bool, grows: bool) -> np.ndarray:
        """A table [N, T] as scikit-learn checks it; where it `grows`, it may have gained columns since fit."""
        options: dict[str, Any] = {"dtype": np.float64, "ensure_all_finite": "allow-nan"}
        shape: tuple[int, ...] = np.shape(X) if isinstance(X, list | tuple) else getattr(X, "shape", ())
        known = self.n_features_in_ if not reset and self.table_ and len(shape) == 2 else 0  # 0: any number is right
        if known and grows and shape[1] > known:
            if hasattr(X, "iloc"):
                validate_data(self, X.iloc[:, :known], reset=False, skip_check_array=True)
        elif known and shape[1] != known and not hasattr(X, "columns"):
            raise ValueError(
                f"X has {shape[1]} features, but {type(self).__name__} is expecting {known} features as input. "
                "Give series of other lengths as a list of arrays, or as [N, T, 1]"
            )
        elif reset or self.table_:
            table: np.ndarray = validate_data(self, X, reset=reset, **options)
            return table
        table = check_array(X, input_name="X", estimator=self, **options)
        return table

    # Learning

    def _begin(self, network: Callable[[int], Any]) -> None:
        """Draw the seed and make the network of it."""
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.network_ = network(self.seed_)
        self.optimizer_ = optimizer_of(self.learning_rate, self.weight_decay)
        self.loss_curve_ = np.zeros(0)

    def _learn(self, rows: int, make: Callable[[np.ndarray], Batch], epochs: int | None) -> None:
        """Train: a fit of some epochs, or, for None, one epoch more."""
        self.optimizer_.lr = self.learning_rate
        losses = learn(
            self.network_,
            self.optimizer_,
            rows,
            make,
            epochs=epochs or 1,
            batch_size=self.batch_size,
            seed=self.seed_,
            done=len(self.loss_curve_),
            decay=epochs is not None,
        )
        self.loss_curve_ = np.concatenate([self.loss_curve_, np.fromiter(losses, float)])

    # Pickles and files: networks go as arrays and a record of what they are

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if "network_" in state:
            state["network_"] = packed(self.network_)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        if "network_" in state:
            state["network_"] = unpacked(*state["network_"])
        super().__setstate__(state)

    def _check_fitted(self) -> None:
        """Raise ValueError if fitted attributes do not fit each other, as those of a file may."""
        check_moments(self.network_.config, self.optimizer_.state_arrays())
        check_stored("loss_curve_", self.loss_curve_, "float64", (self.loss_curve_.size,))
        width = 1 if self.table_ else self.n_features_in_
        if self.n_variables_ != width:
            raise ValueError(f"n_variables_ is {self.n_variables_}; expected {width}, by the other attributes")
        names = getattr(self, self._names, None)
        if names is not None and len(names) != self.n_features_in_:
            raise ValueError(f"{self._names} has {len(names)} names; expected {self.n_features_in_}, as n_features_in_")

    def _check_sizes(self, **sizes: int) -> None:
        """Check sizes in the network's config."""
        for name, size in sizes.items():
            if self.network_.config[name] != size:
                raise ValueError(f"network_.{name} is {self.network_.config[name]}; expected {size}, by the other attributes")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted estimator as one safetensors file with a JSON record, whole or not at all; without pickle.

        Parameters
        ----------
        path : path
            The file; what is there is replaced in one go.

        Raises
        ------
        TypeError
            If an argument is not what JSON can hold, such as a generator as random_state.
        ValueError
            If an argument is out of its range, a window has more than a million steps, or what was learnt is not finite.
        """
        check_is_fitted(self)
        self._check_params()
        self._check_fitted()  # as `load` will
        names = [name for name in self._fitted if name != self._names or hasattr(self, name)]
        arrays, record = pack_all({name: getattr(self, name) for name in names})
        params = {
            name: value.tolist() if isinstance(value, np.ndarray) else plain(value)
            for name, value in self.get_params(deep=False).items()
        }
        for name, value in params.items():
            if not isinstance(value, bool | int | float | str | list | None):
                raise TypeError(f"{name} is {value!r}; a file holds numbers, text and lists of them")
        schema.table(self._fitted, self._names)("fitted", record["parts"])
        write_checkpoint(path, arrays, {"estimator": type(self).__name__, "params": params, "fitted": record})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The estimator that `save` wrote; nothing in the file is evaluated.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        fastlstm.CheckpointError
            If it is damaged, of another program, or holds another estimator.
        """
        found: Self = read(path, cls)
        return found


def read(path: str | os.PathLike[str], *kinds: type[SeriesEstimator]) -> Any:
    """The estimator that `SeriesEstimator.save` wrote, which must be one of `kinds`.

    Raises
    ------
    FileNotFoundError, fastlstm.CheckpointError
        As of `SeriesEstimator.load`.
    """
    arrays, record = read_checkpoint(path)
    name, params, fitted = (record.get(key) for key in ("estimator", "params", "fitted"))
    if not isinstance(name, str) or not isinstance(params, dict) or not isinstance(fitted, dict):
        raise CheckpointError(f"{os.fspath(path)} is a checkpoint of fastlstm, but holds no estimator")
    kind = {kind.__name__: kind for kind in kinds}.get(name)
    if kind is None:
        wanted = " or ".join(kind.__name__ for kind in kinds)
        raise CheckpointError(f"{os.fspath(path)} holds a {name[:80]}; expected {wanted}")
    with schema.reading(path, CheckpointError):
        schema.table(dict.fromkeys(kind._get_param_names(), _argument))("params", params)
        schema.table({"parts": schema.table(kind._fitted, kind._names)})("fitted", fitted)
        estimator = kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in params.items()})
        with schema.within("params"):
            estimator._check_params()
        estimator.__dict__.update(unpack_all(arrays, fitted, "fitted"))
        estimator._check_fitted()
    return estimator


def _argument(place: str, value: Any) -> None:
    """An argument of an estimator: a number, text, null, or a list of them."""
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, bool | int | float | str | None):
            schema.refuse(place, value, "a number, text, or a list of them")


def check_units(place: str, units: Moments, width: int) -> None:
    """Check the units that a file has of `width` variables."""
    check_stored(f"{place}.center", units.center, "float64", (width,))
    check_scale(f"{place}.scale", units.scale, width)
    if not np.isfinite(units.center).all():
        raise ValueError(f"{place}.center has NaN or infinity; expected finite numbers")


def check_scale(place: str, scale: np.ndarray, width: int) -> None:
    """Check what is to be divided by, for each of `width` variables."""
    check_stored(place, scale, "float64", (width,))
    wrong = scale[~(np.isfinite(scale) & (scale > 0))]
    if wrong.size:
        raise ValueError(f"{place} has {wrong[0]}; expected finite numbers above 0")
