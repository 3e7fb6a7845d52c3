"""What makes the oracles import beside TensorFlow and any build of torch; nothing slow happens."""

import sys
import types


def without_compiled_libraries() -> None:
    """Keeps the compiled libraries of torchaudio and of triton out of the process.

    torchaudio's wheels hold a library for one version and one CUDA build of torch and do not import
    without them; transformers imports torchaudio wherever it is installed. Nothing that is
    compared here needs the library, so the module that loads it is put in place beforehand,
    saying what it says where torchaudio was built without one.

    triton comes with torch's CUDA builds, which are what Linux gets unless it asks for another one.
    Its library ends a process that has TensorFlow's in it with a segmentation fault. torch
    imports it for its compiler, which nothing here uses, and does without where it is missing.
    """
    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
    extension._IS_ALIGN_AVAILABLE = False
    extension.fail_if_no_align = lambda function: function
    sys.modules.setdefault(extension.__name__, extension)
    sys.modules.setdefault("triton", None)
