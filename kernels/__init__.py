"""The compiled kernels, imported as ``fastlstm.kernels``; they know nothing of layers, files or users."""

if __name__ != "fastlstm.kernels":
    raise ImportError(
        f"This folder is the package fastlstm.kernels and was imported as {__name__!r}: "
        "install fastlstm (pip install -e .) and import fastlstm.kernels."
    )
