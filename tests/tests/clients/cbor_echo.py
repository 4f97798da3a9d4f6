"""Reads lines of CBOR in hexadecimal, checks that each is a map with text keys, and writes it anew with cbor2."""

import sys

import cbor2

for line in sys.stdin:
    value = cbor2.loads(bytes.fromhex(line))
    assert isinstance(value, dict) and all(isinstance(key, str) for key in value), value
    if "data" in value:
        assert isinstance(value["data"], bytes), value
    print(cbor2.dumps(value).hex())
