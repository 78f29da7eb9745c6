"""Which :authority a plugin takes, by HTTP/2 frames of our own.

grpc-go of Kubernetes 1.29 to 1.31 makes the :authority from the socket's path,
which a Rust HTTP/2 server refuses unless the file's name holds an '@'. With
--expect the outcomes must be those; without, they are only shown.
"""

import argparse
import os
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

import steps

ABSENT = None
OK, REFUSED = "ok", "rst PROTOCOL_ERROR"


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--socket", required=True, help="path of the plugin's Unix socket; @name is an abstract socket")
    arguments.add_argument("--timeout", type=float, default=3, help="seconds for one exchange")
    arguments.add_argument("--expect", action="store_true", help="fail unless every outcome is the expected one")
    chosen = arguments.parse_args()

    check_settings(chosen.socket, chosen.timeout)
    for who, authority, expected in table(chosen.socket):
        outcome = status_call(chosen.socket, authority, chosen.timeout)
        row = {"who": who, "authority": authority, "outcome": outcome}
        if chosen.expect:
            steps.check("authority", outcome == expected, expected=expected, **row)
        else:
            steps.note("authority", **row)
    steps.end()


def table(path):
    """Who sends what, and what a plugin on the socket's path answers."""
    name_saves_it = "@" in os.path.basename(path)
    raw_path = OK if path.startswith("@") else REFUSED
    return [
        ("Kubernetes 1.32 and later", "localhost", OK),
        ("no authority", ABSENT, OK),
        ("any Kubernetes, abstract socket", "@kms", OK),
        ("1.29 to 1.31, this socket", encode(path), OK if name_saves_it else REFUSED),
        ("1.29 to 1.31, file name without @", "%2Frun%2Fkms%2Fkms.sock", REFUSED),
        ("1.29 to 1.31, file name with @", "%2Frun%2Fkms%2Fkms@hsm.sock", OK),
        ("1.28 and before, this socket", path, raw_path),
        ("1.28 and before, file name with @", "/run/kms/kms@hsm.sock", REFUSED),
        ("empty authority", "", REFUSED),
    ]


def encode(path):
    """Percent-encodes as grpc-go does since 1.57: what RFC 3986 allows in an authority stays."""
    kept = "-_.~" "!$&'()*+,;=" ":[]@"
    return "".join(
        chr(byte) if chr(byte) in kept or (byte < 128 and chr(byte).isalnum()) else f"%{byte:02X}"
        for byte in os.fsencode(path)
    )


def check_settings(path, timeout):
    """The server's SETTINGS must come at once: grpc-go waits for it before the first call."""
    start = time.monotonic()
    with steps.connect(path, timeout) as connection:
        received = events(connection, client(), timeout)
        arrived = any(isinstance(event, h2.events.RemoteSettingsChanged) for event in received)
    seconds = round(time.monotonic() - start, 4)
    steps.check("settings", arrived and seconds < 1, seconds=seconds)


def status_call(path, authority, timeout):
    """The outcome of one Status: "ok" or how the server refused it."""
    headers = [(":method", "POST"), (":scheme", "http"), (":path", "/v2.KeyManagementService/Status")]
    if authority is not ABSENT:
        headers.append((":authority", authority))
    headers += [("content-type", "application/grpc"), ("user-agent", "grpc-go/1.65.0"), ("te", "trailers")]
    with steps.connect(path, timeout) as connection:
        exchange = client()
        exchange.send_headers(1, headers)
        exchange.send_data(1, bytes(5), end_stream=True)  # an empty message: no flags, length 0
        for event in events(connection, exchange, timeout):
            if isinstance(event, (h2.events.ResponseReceived, h2.events.TrailersReceived)):
                status = dict(event.headers).get(b"grpc-status")
                if status is not None:
                    return OK if status == b"0" else f"grpc-status {status.decode()}"
            elif isinstance(event, h2.events.StreamReset):
                return f"rst {error_name(event.error_code)}"
            elif isinstance(event, h2.events.ConnectionTerminated):
                return f"goaway {error_name(event.error_code)}"
    return "no answer"


def client():
    """A client that sends headers as they are, valid or not, and its preface."""
    exchange = h2.connection.H2Connection(
        h2.config.H2Configuration(
            client_side=True, header_encoding=False, validate_outbound_headers=False, normalize_outbound_headers=False
        )
    )
    exchange.initiate_connection()
    return exchange


def events(connection, exchange, timeout):
    """Sends what the exchange holds, then gives what comes until the server closes or the time is over."""
    end = time.monotonic() + timeout
    try:
        connection.sendall(exchange.data_to_send())
        while (left := end - time.monotonic()) > 0:
            connection.settimeout(left)
            data = connection.recv(65536)
            if not data:
                return
            yield from exchange.receive_data(data)
            connection.sendall(exchange.data_to_send())
    except (OSError, h2.exceptions.ProtocolError):
        return


def error_name(code):
    try:
        return h2.errors.ErrorCodes(code).name
    except ValueError:
        return str(code)


if __name__ == "__main__":
    main()
