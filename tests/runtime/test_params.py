"""The parameter buffer: read-only views, versions, joining, loading."""

import numpy as np
import pytest

import fastlstm
from fastlstm.runtime.arrays import as_numpy, on_device
from fastlstm.runtime.params import Slots, load_into

SHAPES = {"weight": (2, 3), "bias": (2,)}


def filled(dtype="float32"):
    slots = Slots(SHAPES, dtype)
    slots.params.flat[:] = np.arange(8)
    slots.grads.flat[:] = 10 + np.arange(8)
    return slots


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_views_by_name(dtype):
    slots = filled(dtype)
    assert {name: view.shape for name, view in slots.params.items()} == SHAPES
    assert len(slots.params) == len(slots.grads) == 2
    assert slots.params["bias"].tolist() == [6, 7]
    assert slots.params["weight"].dtype == slots.grads["weight"].dtype == dtype
    assert np.shares_memory(slots.params["weight"], slots.params.flat)
    slots.grads["bias"][:] = 0
    assert slots.grads.flat.tolist() == [10, 11, 12, 13, 14, 15, 0, 0]
    with pytest.raises(KeyError):
        slots.params["gain"]


def test_parameters_are_read_only_outside_an_edit():
    slots = filled()
    for view in (slots.params["weight"], slots.params["weight"][0], slots.params["weight"].reshape(-1)):
        with pytest.raises(ValueError, match="read-only"):
            view[...] = 0
    with pytest.raises(TypeError):
        slots.params["weight"] = np.zeros((2, 3))
    version = slots.params.version
    with slots.params.edit() as params:
        params["weight"][1] = 9
    assert slots.params["weight"].tolist() == [[0, 1, 2], [9, 9, 9]]
    assert slots.params.version == version + 1
    slots.params.bump()
    assert slots.params.version == version + 2


def test_an_edit_counts_even_if_it_fails():
    slots = filled()
    version = slots.params.version

    def edit():
        with slots.params.edit() as params:
            params["bias"][:] = 1
            raise RuntimeError("halfway")

    with pytest.raises(RuntimeError, match="halfway"):
        edit()
    assert slots.params["bias"].tolist() == [1, 1]
    assert slots.params.version == version + 1


def test_parts_move_into_one_buffer():
    one, two = filled(), Slots({"bias": (4,)})
    two.params.flat[:] = 20
    whole = Slots.joined({"one": one, "": two})
    assert [*whole.params] == ["one.weight", "one.bias", "bias"]
    assert whole.params.flat.tolist() == [*range(8), 20, 20, 20, 20]
    assert whole.grads.flat.tolist() == [*range(10, 18), 0, 0, 0, 0]
    assert [*one.params] == ["weight", "bias"]
    before = one.params.version
    with whole.params.edit() as params:
        params["one.bias"][:] = -1
    assert one.params["bias"].tolist() == [-1, -1]
    assert one.params.version == before + 1
    assert two.params.version == one.params.version
    one.grads.flat.fill(3)
    assert whole.grads.flat.tolist() == [3] * 8 + [0] * 4


def test_a_joined_buffer_can_be_joined_again():
    parts = {"a": Slots({"x": (2,)}), "b": Slots({"x": (1,)})}
    inner = Slots.joined(parts)
    outer = Slots.joined({"inner": inner, "last": Slots({"x": (3,)})})
    outer.params.flat[:] = np.arange(6)
    assert parts["a"].params["x"].tolist() == [0, 1]
    assert parts["b"].params["x"].tolist() == [2]
    assert inner.params.flat.tolist() == [0, 1, 2]
    assert outer.params["inner.b.x"].tolist() == [2]
    assert outer.params["last.x"].tolist() == [3, 4, 5]


def test_no_buffer_is_left_without_its_parts():
    one, two = Slots({"x": (2,)}), Slots({"x": (1,)})
    with pytest.raises(ValueError, match="part 'a' comes twice"):
        Slots.joined({"a": one, "b": one})
    whole = Slots.joined({"a": one, "b": two})
    for parts in ({"b": two, "a": one}, {"whole": whole, "a": one}, {"one": one}):
        with pytest.raises(ValueError, match="lies in a joined buffer already"):
            Slots.joined(parts)
    with pytest.raises(ValueError, match="part 'again' comes twice"):
        Slots.joined({"again": whole, "and again": whole})
    with whole.params.edit() as params:
        params["b.x"][...] = 5
    assert two.params["x"] == 5
    Slots.joined({"copy": whole.copy(), "whole": whole})
    whole.params.flat[:] = 7
    assert one.params["x"].tolist() == [7, 7]


def test_one_buffer_holds_one_dtype():
    with pytest.raises(ValueError, match="dtypes .*float32.*float64.*; one buffer holds one dtype"):
        Slots.joined({"a": Slots(SHAPES), "b": Slots(SHAPES, "float64")})


class Torchlike:
    """What of a torch tensor is looked at."""

    def __init__(self, array):
        self.array, self.dtype = array, array.dtype

    def detach(self):
        return self

    cpu = detach

    def numpy(self):
        return self.array


class Cupylike:
    device = "cuda"  # of the class, as CuPy's is

    def __init__(self, array):
        self.array = array

    def get(self):
        return self.array


@pytest.mark.parametrize("wrap", [np.asarray, Torchlike, Cupylike, np.ndarray.tolist, np.asfortranarray])
def test_loading_takes_every_array(wrap):
    slots = filled("float64")
    values = {"weight": np.arange(6.0).reshape(2, 3) + 50, "bias": np.array([1.0, 2.0])}
    assert np.array_equal(as_numpy(wrap(values["weight"])), values["weight"])
    version = slots.params.version
    load_into(slots.params, {name: wrap(value) for name, value in values.items()})
    assert all(np.array_equal(slots.params[name], values[name]) for name in values)
    assert slots.params.version > version


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"bias": np.ones(2)}, KeyError, "missing ['weight'], unexpected []"),
        ({"bias": np.ones(2), "weight": np.ones((2, 3)), "gain": 1}, KeyError, "missing [], unexpected ['gain']"),
        ({"bias": np.ones(2), "weight": np.ones((3, 2))}, ValueError, "weight has shape (3, 2); expected (2, 3)"),
        ({"bias": np.ones(1), "weight": np.ones((2, 3))}, ValueError, "bias has shape (1,); expected (2,)"),
        ({"bias": np.array(["a", "b"]), "weight": np.ones((2, 3))}, TypeError, "bias has dtype <U1; expected real numbers"),
        ({"bias": np.ones(2), "weight": np.ones((2, 3)) * 1j}, TypeError, "weight has dtype complex128; expected real"),
    ],
)
def test_what_does_not_fit_is_refused_whole(values, error, message):
    slots = filled()
    with pytest.raises(error) as caught:
        load_into(slots.params, values)
    assert message in str(caught.value)
    assert slots.params.flat.tolist() == [*range(8)]


def test_loading_a_part():
    slots = filled()
    load_into(slots.params, {"bias": np.ones(2), "other": np.ones(9)}, strict=False)
    assert slots.params.flat.tolist() == [0, 1, 2, 3, 4, 5, 1, 1]


def test_views_of_an_edit_are_closed_after_it():
    layer = fastlstm.GRU(2, 4, seed=0)
    with layer.params.edit() as views:
        views["weight_ih_l0"][0] = 1
    with pytest.raises(ValueError, match="read-only"):
        views["weight_ih_l0"][0] = 2
    with layer.params.edit() as again:
        again["weight_ih_l0"][0] = 3
    assert (layer.params["weight_ih_l0"][0] == 3).all()


def test_what_is_masked_is_no_number():
    layer = fastlstm.GRU(2, 4, seed=0)
    x = np.ma.masked_array(np.ones((3, 1, 2), np.float32), mask=False)
    assert np.array_equal(layer(x)[0], layer(np.ones((3, 1, 2), np.float32))[0])
    x[1, 0, 1] = np.ma.masked
    with pytest.raises(ValueError, match="masked array has masked elements; expected numbers everywhere"):
        layer(x)


def test_a_list_with_something_masked_is_refused():
    for value in ([1.0, np.ma.masked], (np.ma.masked_array([1.0, 2.0], [True, False]), [3.0, 4.0])):
        with pytest.raises(ValueError, match="masked array has masked elements"):
            as_numpy(value)
    assert as_numpy([np.ma.masked_array([1.0, 2.0]), [3.0, 4.0]]).tolist() == [[1.0, 2.0], [3.0, 4.0]]


def test_the_elements_of_a_plain_list_are_not_asked_one_by_one(monkeypatch):
    monkeypatch.setattr(np.ma, "is_masked", lambda value: pytest.fail(f"asked {value}") if isinstance(value, float) else False)
    assert as_numpy([1.0, 2.0]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("columns", [("device", "get"), ("detach",)])
def test_a_table_with_columns_named_as_methods_is_no_tensor(columns):
    """A DataFrame offers its columns as attributes."""

    class Table:
        def __array__(self, dtype=None, copy=None):
            return np.ones((3, 2), np.float32)

        def __getattr__(self, name):
            if name in columns:
                return np.ones(3)
            raise AttributeError(name)

    assert not on_device(Table())
    layer = fastlstm.LSTM(2, 4, seed=0)
    assert np.array_equal(layer(Table())[0], layer(np.ones((3, 2), np.float32))[0])
