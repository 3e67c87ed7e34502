"""The parts of SGLang 0.5.23 that the plugin imports, so that tests run the loader where SGLang is not installed.

Names and signatures are those of SGLang: `tests/sglang_plugin/test_standin.py` compares them with the real ones.
"""

__version__ = "0.5.23"
