"""What of Keras is not served is refused by name."""

import pytest

import fastlstm

pytest.importorskip("keras")
pytest.importorskip("h5py")

from fastlstm.adapters.keras import from_keras, to_keras
from tests.adapters.keras.models import QUIET, L, built, close, ids, inputs, keras, sequential

pytestmark = QUIET


def twice(**options):
    return L.Bidirectional(L.LSTM(4, return_sequences=True), **options)


REFUSED = {
    "activation": (lambda: L.LSTM(4, activation="relu"), r"\(LSTM\) has activation='relu'"),
    "rnn activation": (lambda: L.SimpleRNN(4, activation="sigmoid"), r"\(SimpleRNN\) has activation='sigmoid'"),
    "no activation": (lambda: L.GRU(4, activation=None), r"\(GRU\) has activation='linear'"),
    "recurrent_activation": (lambda: L.GRU(4, recurrent_activation="hard_sigmoid"), "recurrent_activation='hard_sigmoid'"),
    "go_backwards": (lambda: L.LSTM(4, go_backwards=True), "go_backwards=True"),
    "merge_mode sum": (lambda: twice(merge_mode="sum"), "merge_mode='sum'"),
    "merge_mode mul": (lambda: twice(merge_mode="mul"), "merge_mode='mul'"),
    "merge_mode ave": (lambda: twice(merge_mode="ave"), "merge_mode='ave'"),
    "merge_mode None": (lambda: twice(merge_mode=None), "merge_mode=None"),
    "float16": (lambda: L.LSTM(4, dtype="float16", recurrent_initializer="zeros"), "dtype='float16'"),
    "two directions": (
        lambda: L.Bidirectional(L.LSTM(4), backward_layer=L.LSTM(3, go_backwards=True)),
        "two directions of different options",
    ),
    "two kinds": (lambda: L.Bidirectional(L.LSTM(4), backward_layer=L.GRU(4, go_backwards=True)), "wraps LSTM and GRU"),
    "turned round": (lambda: L.Bidirectional(L.LSTM(4, go_backwards=True), backward_layer=L.LSTM(4)), "go_backwards=True"),
    "RNN": (lambda: L.RNN(L.LSTMCell(4)), r"\(RNN\) is not served"),
    "Conv1D": (lambda: L.Conv1D(4, 3), r"\(Conv1D\) is not served"),
    "Dense": (lambda: L.Dense(4, activation="gelu"), r"\(Dense\) has activation='gelu'"),
    "TimeDistributed": (lambda: L.TimeDistributed(L.Flatten()), "wraps Flatten"),
    "Normalization": (lambda: L.Normalization(axis=None, mean=0, variance=1), "axis=\\[\\]"),
    "Rescaling": (lambda: L.Rescaling(-1.0), "scale that is not positive"),
    "Reshape": (lambda: L.Reshape((5, -1)), "target_shape"),
    "Dropout": (lambda: L.Dropout(0.1, noise_shape=(1, 1, 5)), "noise_shape"),
    "Softmax": (lambda: L.Softmax(axis=1), "axis=1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_are_refused_by_name(case):
    make, text = REFUSED[case]
    layer = make()
    layer.build((2, 7, 5))
    with pytest.raises(ValueError, match=f"layer '{layer.name}' .*{text}|layer 'forward.*{text}"):
        from_keras(layer)


def test_states_and_masks_are_refused():
    with pytest.raises(ValueError, match="stateful=True.*pass the state"):
        from_keras(keras.Sequential([keras.Input((None, 5), batch_size=2), L.LSTM(4, stateful=True)]))
    with pytest.raises(ValueError, match="mask_zero=True.*lengths"):
        from_keras(sequential(L.Embedding(7, 4, mask_zero=True), L.LSTM(4), entry=(None,)))
    with pytest.raises(ValueError, match=r"\(Masking\) is not served"):
        from_keras(sequential(L.Masking(), L.LSTM(4)))


def test_models_that_are_no_chain():
    def two_outputs(x):
        h = L.LSTM(4, return_sequences=True)(x)
        return [L.Dense(2)(h), h]

    def shared(x):
        layer = L.LSTM(5, return_sequences=True)
        return layer(layer(x))

    def state(x):
        out, h, c = L.LSTM(4, return_sequences=True, return_state=True)(x)
        return L.LSTM(4)(out, initial_state=[h, c])

    def final(x):
        return L.Dense(2)(L.GRU(4, return_state=True)(x)[1])

    def active(x):
        return L.Dropout(0.5)(L.GRU(4)(x), training=True)

    for make, text in (
        (two_outputs, "other inputs and outputs"),
        (shared, "not called exactly once"),
        (state, "expected the input alone"),
        (final, "does not read"),
        (active, "is called with True"),
        (lambda x: x + L.GRU(5, return_sequences=True)(x), "Add"),
    ):
        entry = keras.Input((None, 5))
        with pytest.raises(ValueError, match=text):
            from_keras(keras.Model(entry, make(entry)))
    a, b = keras.Input((None, 5)), keras.Input((None, 5))
    with pytest.raises(ValueError, match="second input|does not read"):
        from_keras(keras.Model([a, b], L.LSTM(4)(L.Concatenate()([a, b]))))

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.lstm = L.LSTM(4)

        def call(self, x):
            return self.lstm(x)

    model = Own()
    model(inputs())
    with pytest.raises(ValueError, match="Own.*is no Sequential or Functional"):
        from_keras(model)

    class Changed(L.LSTM):
        pass

    with pytest.raises(ValueError, match="Changed.*is not served"):
        from_keras(built(Changed(4), 5))
    with pytest.raises(ValueError, match="Sequential.*is not served"):
        from_keras(sequential(keras.Sequential([L.LSTM(4)])))


def test_layers_in_places_that_nothing_serves():
    with pytest.raises(ValueError, match=r"\(Normalization\) stands where fastlstm has no such step"):
        from_keras(keras.Sequential([keras.Input((None, 5)), L.Normalization(), L.LSTM(4)]))
    with pytest.raises(ValueError, match="one dtype"):
        from_keras(sequential(L.LSTM(4, return_sequences=True), L.GRU(4, dtype="float64")))
    with pytest.raises(ValueError, match=r"\(Embedding\) stands behind"):
        from_keras(keras.Sequential([keras.Input((None,)), L.Activation("relu"), L.Embedding(5, 4), L.LSTM(4)]))


def test_what_acts_in_training_only_is_said():
    layer = built(L.LSTM(4, dropout=0.1, recurrent_dropout=0.2, kernel_regularizer="l2", bias_constraint="non_neg"), 5)
    options = " of layer .*".join(("dropout", "recurrent_dropout", "kernel_regularizer", "bias_constraint"))
    with pytest.warns(UserWarning, match=f"{options} of layer '{layer.name}'"):
        ours = from_keras(layer)
    close(ours(inputs())[0][:, -1], layer(inputs()))
    theirs = sequential(
        L.Embedding(7, 4),
        L.SpatialDropout1D(0.1),
        L.Bidirectional(L.LSTM(4, recurrent_dropout=0.2)),
        L.Dense(1, kernel_regularizer="l2"),
        entry=(None,),
    )
    with pytest.warns(UserWarning, match="SpatialDropout1D.*recurrent_dropout of layer 'b.*kernel_regularizer of layer 'dense"):
        close(from_keras(theirs)(ids()), theirs(ids()))


def test_a_dropout_of_everything_goes_both_ways():
    ours = from_keras(sequential(L.LSTM(4, return_sequences=True), L.Dropout(1.0), L.LSTM(4, return_sequences=True)))
    assert ours.shape.dropout == 1
    assert from_keras(to_keras(ours)).shape.dropout == 1
    assert from_keras(to_keras(fastlstm.Dropout(1.0))).p == 1


def test_wrong_arguments():
    with pytest.raises(ValueError, match="not built"):
        from_keras(L.LSTM(4))
    with pytest.raises(TypeError, match="source is int"):
        from_keras(3)
    with pytest.raises(TypeError, match="layer is int"):
        to_keras(3)
    with pytest.raises(ValueError, match="proj_size=2"):
        to_keras(fastlstm.LSTM(5, 4, proj_size=2))
    with pytest.raises(FileNotFoundError, match="nowhere.keras"):
        from_keras("nowhere.keras")
