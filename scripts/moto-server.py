"""moto's S3 on a free port of the loopback, written to the file that is named, or on the port that is named, of every address; run by
scripts/s3-server, and in the image of scripts/test-compose.

moto looks whether a name is free and takes it in two steps, and lets two who create at the same time win. Requests are
therefore answered one after the other."""

import os
import sys
from threading import Lock

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server

moto = DomainDispatcherApplication(create_backend_app)
turn = Lock()


def one_at_a_time(environ, start_response):
    with turn:
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
