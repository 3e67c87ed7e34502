"""The small files that DeepSeek's V4 repositories have beside their weights, by the same names."""

from pathlib import Path

CARD = """---
license: mit
library_name: transformers
---
# DeepSeek-V4

See [LICENSE](LICENSE).
"""

RELEASE = {
    "LICENSE": "MIT License\n\nCopyright (c) DeepSeek\n",
    "NOTICE.txt": "Third parties.\n",
    "README.md": CARD,
    "DeepSeek_V4.pdf": "%PDF",
    "assets/dsv4 performance (1).png": "\x89PNG",
    "chat_template.jinja": "{{ messages }}",
    "encoding/README.md": "# Encoding\n",
    "encoding/encoding_dsv4.py": "raise SystemExit('never run')\n",
    "encoding/tests/test_input_1.json": "{}\n",
    "generation_config.json": "{}\n",
    "inference/config.json": "{}\n",
    "inference/generate.py": "raise SystemExit('never run')\n",
    "inference/kernel.py": "raise SystemExit('never run')\n",
    "inference/requirements.txt": "",
    "tokenizer.json": "{}\n",
    "tokenizer_config.json": "{}\n",
    "vocab.txt": "a\nb\n",
}
"""Name → content."""

STAYS = {
    ".cache/huggingface/download/x.lock": ".cache/",
    ".gitattributes": ".gitattributes",
    "encoding/__pycache__/encoding_dsv4.cpython-312.pyc": "encoding/__pycache__/",
    "fp8/config.json": "fp8/",
    "fp8/model.safetensors": "fp8/",
    "inference/optimizer.PT": "inference/optimizer.PT",
    "pytorch_model.bin": "pytorch_model.bin",
    "pytorch_model.bin.index.json": "pytorch_model.bin.index.json",
    "training_args.pkl": "training_args.pkl",
    "-rf": "-rf",
    "back\\slash": "back\\\\slash",
}
"""Name of a file that no result gets → the name by which that is said."""


def add_release(folder: Path, files: dict[str, str]) -> Path:
    """Put small files into a checkpoint."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return folder
