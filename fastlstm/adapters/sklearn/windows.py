"""What a forecaster's network reads and gives: windows of history, the steps to forecast after them, and their units.

A forecast is a gap at the end of a series: it is filled by the seasonal naive forecast as any gap is, the network reads on
over these steps with what is known of them, and says how to correct the filling. Knows panels, nothing of networks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .panel import Moments, Panel, filled

SAMPLE = 4096  # windows that units are learnt from


@dataclass(frozen=True)
class Cut:
    """B windows, each row with its history first and the steps to forecast right after it.

    Attributes
    ----------
    values, gaps : ndarray [B, window + horizon, F]
        As of `filled`; in the steps to forecast, the seasonal naive forecast and the steps since the last observation.
    covariates : ndarray [B, window + horizon, C]
    read : ndarray [B]
        Steps of history of each row.
    at : ndarray [horizon, B]
        Where the steps to forecast lie.
    """

    values: np.ndarray
    gaps: np.ndarray
    covariates: np.ndarray
    read: np.ndarray
    at: np.ndarray

    @property
    def naive(self) -> np.ndarray:
        """The seasonal naive forecast [B, horizon, F]."""
        return np.take_along_axis(self.values, self.at.T[..., None], axis=1)


class Windows:
    """Windows on the series of a panel, cut as they are needed.

    Parameters
    ----------
    panel : Panel
    covariates : ndarray [N, T, C]
        Of the panel's steps and those to forecast.
    season : int
        Steps of a season.
    """

    def __init__(self, panel: Panel, covariates: np.ndarray, season: int) -> None:
        self.panel, self.covariates, self.season = panel, covariates, season
        self.values, self.gaps = filled(panel, season)

    def origins(self, window: int, horizon: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
        """Series and origin (first step to forecast) of every window to learn from; the last of each series is among them.

        A window has at least half of its history, or all there is where a series is too short for that, and something
        observed after its origin.

        Raises
        ------
        ValueError
            If no series is longer than the horizon.
        """
        series, origins = [], []
        steps = self.panel.values.shape[1]
        count = np.zeros((len(self.panel), steps + 1), int)  # steps with an observed value before each
        np.cumsum(~np.isnan(self.panel.values).all(axis=2), axis=1, out=count[:, 1:])
        for n, (start, end) in enumerate(zip(self.panel.starts, self.panel.ends, strict=True)):
            first = start + max(1, min(-(-window // 2), end - start - horizon))
            found = np.arange(end - horizon, first - 1, -stride)
            found = found[count[n, found + horizon] > count[n, found]]
            series.append(np.full(len(found), n))
            origins.append(found)
        if not sum(map(len, origins)):
            longest = int((self.panel.ends - self.panel.starts).max())
            raise ValueError(f"X has no series longer than {longest} steps; expected more than the horizon ({horizon})")
        return np.concatenate(series), np.concatenate(origins)

    def targets(self, series: np.ndarray, origins: np.ndarray, horizon: int) -> np.ndarray:
        """What came after the origins: [B, horizon, F], NaN where it is missing."""
        found: np.ndarray = self.panel.values[series[:, None], origins[:, None] + np.arange(horizon)]
        return found

    def cut(self, series: np.ndarray, origins: np.ndarray, window: int, horizon: int) -> Cut:
        """The windows before these origins."""
        read = np.minimum(window, origins - self.panel.starts[series])
        rows, step = series[:, None], np.arange(window + horizon)
        ahead = step - read[:, None]  # 0 at the origin
        column = origins[:, None] + ahead
        # The seasonal naive forecast repeats the last season; of a shorter history, the last value.
        last = origins[:, None] - 1
        season = np.where(origins - self.panel.starts[series] >= self.season, self.season, 1)[:, None]
        source = np.where(ahead < 0, column, last + 1 - season + ahead % season)
        gaps = self.gaps[rows, np.where(ahead < 0, column, last)] + np.maximum(0, ahead + 1)[..., None]
        known = np.minimum(column, self.covariates.shape[1] - 1)
        at = read + np.arange(horizon)[:, None]
        return Cut(self.values[rows, source], gaps, self.covariates[rows, known], read, at)


@dataclass(frozen=True)
class Frame:
    """The units of what a network reads and gives.

    Attributes
    ----------
    window, horizon : int
    naive : bool
        Each window is brought to mean 0 and deviation 1 by itself, and the network corrects its seasonal naive forecast.
        Otherwise both are by the whole panel, and the network corrects the mean of the targets.
    inputs, targets, covariates : Moments
    """

    window: int
    horizon: int
    naive: bool
    inputs: Moments
    targets: Moments
    covariates: Moments

    @classmethod
    def of(
        cls,
        windows: Windows,
        series: np.ndarray,
        origins: np.ndarray,
        targets: np.ndarray | None,
        window: int,
        horizon: int,
        anchor: str,
    ) -> Frame:
        """Units learnt from windows.

        `anchor` "auto" is "naive" where that forecast is closer to the targets than their mean, and most variables' levels
        differ more between windows than values do within them.

        Parameters
        ----------
        targets : ndarray [B, horizon, O], optional
            None: what came after the origins.
        """
        chosen = np.linspace(0, len(series) - 1, min(len(series), SAMPLE)).astype(int)
        cut = windows.cut(series[chosen], origins[chosen], window, horizon)
        found = windows.targets(series[chosen], origins[chosen], horizon) if targets is None else targets[chosen]
        panel, by_mean = windows.panel, Moments.of(found)
        inputs, covariates = Moments.of(panel.values), Moments.of(windows.covariates)
        possible = found.shape[2] == panel.variables
        if anchor == "naive" and not possible:
            raise ValueError(
                f"anchor is 'naive', but y has {found.shape[2]} variables and X has {panel.variables}; expected as many, "
                "or anchor 'mean' or 'auto'"
            )
        if possible and anchor != "mean":
            error, own = found - cut.naive, cls(window, horizon, True, inputs, by_mean, covariates)._own_units(cut)
            # In units of the targets' deviation, so that all variables count alike.
            naive, mean = (np.nansum((one / by_mean.scale) ** 2) for one in (error, found - by_mean.center))
            wander = ((own.center - inputs.center) ** 2).sum(axis=0) > (own.scale**2).sum(axis=0)
            if anchor == "naive" or (naive < mean and wander.mean() >= 0.5):
                scale = Moments.of(error / own.scale).scale
                return cls(window, horizon, True, inputs, Moments(np.zeros_like(scale), scale), covariates)
        return cls(window, horizon, False, inputs, by_mean, covariates)

    def _own_units(self, cut: Cut) -> Moments:
        """Centre and scale [B, 1, F] of each window's history; the panel's where it has none or does not vary."""
        step = np.arange(cut.values.shape[1])[:, None]
        known = (step < cut.read[:, None, None]) & ~np.isnan(cut.values)
        count = known.sum(axis=1, keepdims=True)
        center = np.where(known, cut.values, 0).sum(axis=1, keepdims=True) / np.maximum(1, count)
        center = np.where(count > 0, center, self.inputs.center)
        scale = np.sqrt((np.where(known, cut.values - center, 0) ** 2).sum(axis=1, keepdims=True) / np.maximum(1, count))
        return Moments(center, np.where(scale > 1e-9 * np.abs(center), scale, self.inputs.scale))

    def scaled(self, cut: Cut) -> tuple[np.ndarray, np.ndarray, Moments]:
        """What the network reads, and the units of what it gives.

        Returns
        -------
        inputs : ndarray [T, B, 2 * F + C]
            Values, steps since they were observed (as logarithms) and covariates.
        lengths : ndarray [B]
        outputs : Moments
            [horizon, B, O]: the forecast that the network corrects, and the unit of its corrections.
        """
        units = self._own_units(cut) if self.naive else self.inputs
        lengths = cut.read + self.horizon
        values = (cut.values - units.center) / units.scale
        covariates = (cut.covariates - self.covariates.center) / self.covariates.scale
        inputs = np.concatenate([values, np.log1p(cut.gaps), covariates], axis=2)[:, : lengths.max()].swapaxes(0, 1)
        inputs = np.nan_to_num(inputs, nan=0.0)  # nothing is known: the centre
        if not self.naive:
            shape = (self.horizon, len(cut.read), 1)
            outputs = Moments(np.tile(self.targets.center, shape), np.tile(self.targets.scale, shape))
        else:
            base = np.where(np.isnan(cut.naive), units.center, cut.naive).swapaxes(0, 1)
            scale = (units.scale * self.targets.scale).swapaxes(0, 1)
            outputs = Moments(base, np.tile(scale, (self.horizon, 1, 1)))
        return inputs, lengths, outputs
