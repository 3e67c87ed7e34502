"""Signatures of results, in the form of OpenSSF model_signing: who vouches for every file of a folder.

The library model_signing, an extra, signs and verifies. This package decides which files count, and knows their SHA-256
from the manifest or computes it once for all names of a file.
"""

from dsv4_shard.signing.documents import Signed
from dsv4_shard.signing.library import refuse_without_library
from dsv4_shard.signing.methods import Expected, Signer
from dsv4_shard.signing.result_signature import Checked, check_signature, sign_result

__all__ = [
    "Checked",
    "Expected",
    "Signed",
    "Signer",
    "check_signature",
    "refuse_without_library",
    "sign_result",
]
