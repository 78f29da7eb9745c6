"""KMS v2 through grpcio: golden wire bytes, then a live plugin.

The stubs come from proto/kms_v2.proto, so the golden table is what holds that
file to the wire contract of Kubernetes.
"""

import argparse
import os

import grpc
import kms_v2_pb2 as v2
import kms_v2_pb2_grpc
from google.protobuf.unknown_fields import UnknownFieldSet

import steps

# Written by hand from the field numbers of the KMS v2 API.
GOLDEN = [
    (v2.StatusRequest(), ""),
    (
        v2.StatusResponse(version="v2", healthz="ok", key_id="key-1"),
        "0a027632" "12026f6b" "1a056b65792d31",
    ),
    (
        v2.EncryptRequest(plaintext=b"\x00\x01\x02\x03", uid="u"),
        "0a0400010203" "120175",
    ),
    (
        v2.EncryptResponse(
            ciphertext=b"\xca\xfe", key_id="key-1", annotations={"a.b": b"1"}
        ),
        "0a02cafe" "12056b65792d31" "1a08" "0a03612e62" "120131",
    ),
    (
        v2.DecryptRequest(
            ciphertext=b"\xca\xfe", uid="u", key_id="key-1", annotations={"a.b": b"1"}
        ),
        "0a02cafe" "120175" "1a056b65792d31" "2208" "0a03612e62" "120131",
    ),
    (v2.DecryptResponse(plaintext=b"\x00\x01\x02\x03"), "0a0400010203"),
]

# Fields 99 (varint), 100 (bytes) and 101 (fixed 64 bits): no message has them.
UNKNOWN_FIELDS = bytes.fromhex("9806" "01" "a206" "03616263" "a906" "0102030405060708")

# A length that runs past the end, a text that is not UTF-8, a wire type that
# does not exist.
MALFORMED = [
    ("Encrypt", bytes.fromhex("0aff")),
    ("Encrypt", bytes.fromhex("1201ff")),
    ("Decrypt", bytes.fromhex("0f")),
]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--socket", required=True, help="path of the plugin's Unix socket; @name is an abstract socket")
    arguments.add_argument("--timeout", type=float, default=3, help="seconds for one call")
    chosen = arguments.parse_args()

    check_golden()
    steps.connect(chosen.socket, chosen.timeout).close()
    with channel(chosen.socket) as plugin:
        check_three_methods(plugin, chosen.timeout)
        check_raw(plugin, chosen.timeout)
    steps.end()


def check_golden():
    for message, golden in GOLDEN:
        name = message.DESCRIPTOR.full_name
        sent = message.SerializeToString(deterministic=True).hex()
        read = type(message).FromString(bytes.fromhex(golden))
        steps.check("golden", sent == golden and read == message, message=name, bytes=sent)


def channel(path):
    target = "unix-abstract:" + path[1:] if path.startswith("@") else "unix:" + path
    return grpc.insecure_channel(target, options=[("grpc.default_authority", "localhost")])


def check_three_methods(plugin, timeout):
    stub = kms_v2_pb2_grpc.KeyManagementServiceStub(plugin)
    seed = os.urandom(32)
    try:
        status = stub.Status(v2.StatusRequest(), timeout=timeout)
        good = status.version in ("v2", "v2beta1") and status.healthz == "ok" and 1 <= len(status.key_id.encode()) <= 1024
        steps.check("status", good, version=status.version, healthz=status.healthz, key_id=status.key_id)
        sealed = stub.Encrypt(v2.EncryptRequest(plaintext=seed, uid="grpcio"), timeout=timeout)
        good = sealed.key_id == status.key_id and 1 <= len(sealed.ciphertext) <= 1024 and seed not in sealed.ciphertext
        steps.check("encrypt", good, bytes=len(sealed.ciphertext), key_id=sealed.key_id)
        opened = stub.Decrypt(open_request(sealed), timeout=timeout)
        steps.check("decrypt", opened.plaintext == seed)
    except grpc.RpcError as error:
        steps.check("call", False, error=f"{error.code().name}: {error.details()}")
        steps.end()


def check_raw(plugin, timeout):
    """Bytes of our own in both directions, past the generated code."""

    def call(method, request):
        """The response's bytes, or the error."""
        path = f"/v2.KeyManagementService/{method}"
        try:
            return plugin.unary_unary(path)(request, timeout=timeout), None
        except grpc.RpcError as error:
            return b"", f"{error.code().name}: {error.details()}"

    def known_fields(message, text):
        """The message, and whether its bytes hold no field but ours."""
        read = message.FromString(text)
        return read, len(UnknownFieldSet(read)) == 0

    seed = os.urandom(32)
    text, error = call("Status", UNKNOWN_FIELDS)
    status, known = known_fields(v2.StatusResponse, text)
    steps.check("unknown-fields-ignored", bool(status.key_id) and known, method="Status", error=error)

    request = v2.EncryptRequest(plaintext=seed, uid="raw").SerializeToString()
    text, error = call("Encrypt", request + UNKNOWN_FIELDS)
    sealed, known = known_fields(v2.EncryptResponse, text)
    steps.check("unknown-fields-ignored", bool(sealed.ciphertext) and known, method="Encrypt", error=error)

    request = open_request(sealed).SerializeToString()
    text, error = call("Decrypt", UNKNOWN_FIELDS + request)
    opened, known = known_fields(v2.DecryptResponse, text)
    steps.check("unknown-fields-ignored", opened.plaintext == seed and known, method="Decrypt", error=error)

    for method, request in MALFORMED:
        _, error = call(method, request)
        steps.check("malformed-refused", error is not None, method=method, request=request.hex(), error=error)
    text, error = call("Status", b"")
    steps.check("status-after-malformed", error is None, error=error)


def open_request(sealed):
    return v2.DecryptRequest(
        ciphertext=sealed.ciphertext, uid="grpcio", key_id=sealed.key_id, annotations=sealed.annotations
    )


if __name__ == "__main__":
    main()
