"""moto's S3 on a free port of the loopback, written to the file that is named, or on the port that is named, of every address; run by
scripts/s3-server, and in the image of scripts/test-compose.

moto looks whether a name is free and takes it in two steps, and lets two who create at the same time win. Requests are
therefore answered one after the other.

moto judges signatures and policies once a client has sent the number 0 to /moto-api/reset-auth. It passes over conditions of
policies; with PITR_S3_CONDITIONS=1 they are judged here. With PITR_S3_SUMS=1 a body is refused whose CRC-32C is not the one that
was sent with it, which moto stores."""

import base64
import io
import os
import re
import sys
from threading import Lock
from urllib.parse import parse_qs

from moto.iam.access_control import IAMPolicyStatement, PermissionResult
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

moto = DomainDispatcherApplication(create_backend_app)
turn = Lock()
# The query of the request whose turn it is.
query = {}

# The actions whose requests have the key s3:prefix: the service authorization reference of Amazon S3.
LISTINGS = ("s3:ListBucket", "s3:ListBucketVersions")


def like(pattern, text):
    """Whether a text matches a pattern, in which * is any text and ? any character."""
    parts = (".*" if c == "*" else "." if c == "?" else re.escape(c) for c in pattern)
    return re.fullmatch("".join(parts), text, re.DOTALL) is not None


OPERATORS = {"StringLike": like, "StringEquals": lambda wanted, text: wanted == text}


def meets(condition, action):
    """Whether the request meets a condition: all of its operators and keys, and of each key one of the values."""
    for operator, keys in condition.items():
        for key, wanted in keys.items():
            if operator not in OPERATORS or key != "s3:prefix":
                raise NotImplementedError(f"the condition {operator} of {key} is not judged here")
            prefix = query.get("prefix", [None])[0] if action in LISTINGS else None
            wanted = [wanted] if isinstance(wanted, str) else wanted
            # A key that a request lacks meets nothing.
            if prefix is None or not any(OPERATORS[operator](one, prefix) for one in wanted):
                return False
    return True


judged_without = IAMPolicyStatement.is_action_permitted


def is_action_permitted(self, action, *more, **named):
    condition = self._statement.get("Condition")
    if not condition or not action.startswith("s3:"):
        return judged_without(self, action, *more, **named)
    # A statement whose condition is not met says nothing.
    if not meets(condition, action):
        return PermissionResult.NEUTRAL
    rest = {name: value for name, value in self._statement.items() if name != "Condition"}
    return judged_without(IAMPolicyStatement(rest), action, *more, **named)


if os.environ.get("PITR_S3_CONDITIONS"):
    IAMPolicyStatement.is_action_permitted = is_action_permitted


def row(byte):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


TABLE = [row(byte) for byte in range(256)]


def crc32c(body):
    """CRC-32C in base64, the highest byte first. A library for it would be one more to fetch."""
    sum = 0xFFFFFFFF
    for byte in body:
        sum = TABLE[(sum ^ byte) & 0xFF] ^ sum >> 8
    return base64.b64encode((sum ^ 0xFFFFFFFF).to_bytes(4, "big")).decode()


def is_damaged(environ):
    """Whether the body of a request is another than the one whose checksum it has."""
    sent = environ.get("HTTP_X_AMZ_CHECKSUM_CRC32C")
    if environ["REQUEST_METHOD"] != "PUT" or not sent:
        return False
    body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
    environ["wsgi.input"] = io.BytesIO(body)
    return crc32c(body) != sent


def one_at_a_time(environ, start_response):
    global query
    if os.environ.get("PITR_S3_SUMS") and is_damaged(environ):
        start_response("400 Bad Request", [("Content-Type", "application/xml")])
        return [b"<?xml version='1.0'?><Error><Code>BadDigest</Code><Message>The CRC-32C differs.</Message></Error>"]
    with turn:
        query = parse_qs(environ["QUERY_STRING"], keep_blank_values=True)
        return [b"".join(moto(environ, start_response))]


path, port = (None, int(sys.argv[1])) if sys.argv[1].isdigit() else (sys.argv[1], 0)
server = make_server("127.0.0.1" if path else "0.0.0.0", port, one_at_a_time, threaded=True, request_handler=MotoRequestHandler)
# Where moto's own links lead.
os.environ["MOTO_PORT"] = str(server.server_port)
if path:
    with open(path + ".new", "w") as file:
        file.write(f"{server.server_port}\n")
    os.rename(path + ".new", path)
server.serve_forever()
