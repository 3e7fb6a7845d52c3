"""KenLM's programs or, where there are none, stand-ins that write an ARPA file."""

import pathlib
import shutil
import sys

import pytest

# Takes what lmplz takes, and smooths less well; the binary is the ARPA file.
LMPLZ = """#!{python}
import sys
sys.path.insert(0, {tests!r})
from asr import kneser_ney
given = dict(zip(sys.argv[1::1], sys.argv[2::1]))
sentences = [line.split() for line in sys.stdin]
if "ZZ" in sys.argv or not sentences or sentences == [["FAIL"]]:
    sys.exit("Unigram count is too small\\nfor anything")
with open(given["--arpa"], "w") as file:
    file.write(kneser_ney.arpa(sentences, int(given["--order"])))
"""
BUILD_BINARY = "#!{python}\nimport shutil, sys\nshutil.copy(*sys.argv[-2:])\n"


@pytest.fixture(scope="session")
def programs(tmp_path_factory) -> str:
    """`config.kenlm`: the folder of lmplz and build_binary; "": they are on the PATH."""
    if shutil.which("lmplz") and shutil.which("build_binary"):
        return ""
    folder = tmp_path_factory.mktemp("kenlm")
    for name, text in (("lmplz", LMPLZ), ("build_binary", BUILD_BINARY)):
        path = folder / name
        tests = str(pathlib.Path(__file__).parent)
        path.write_text(text.format(python=sys.executable, tests=tests))
        path.chmod(0o755)
    return str(folder)
