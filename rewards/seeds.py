"""Seeds made from what they are for."""

import hashlib


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2^63) that depends on the written form of all parts, and on nothing else.

    Hashed, not added: neighbouring parts (request 7 and 8, response 0 and 1) must not share a random stream.

    Example: derive_seed(7, 0) -> 5751740483655848561
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
