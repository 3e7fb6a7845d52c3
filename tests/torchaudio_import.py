"""What makes `import torchaudio` work beside any build of torch; nothing slow is imported."""

import sys
import types


def without_torchaudio_library() -> None:
    """Lets `import torchaudio` work beside any build of torch.

    Its wheels hold a library for one version and one CUDA build of torch and do not import
    without them; transformers imports torchaudio wherever it is installed. Nothing that is
    compared here needs the library, so the module that loads it is put in place beforehand,
    saying what it says where torchaudio was built without one.
    """
    extension = types.ModuleType("torchaudio._extension")
    extension._IS_TORCHAUDIO_EXT_AVAILABLE = False
    extension._IS_ALIGN_AVAILABLE = False
    extension.fail_if_no_align = lambda function: function
    sys.modules.setdefault(extension.__name__, extension)
