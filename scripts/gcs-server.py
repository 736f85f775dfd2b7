"""A proxy before fake-gcs-server that holds one condition for it; run by scripts/blob-server with its own port and the emulator's.

The emulator looks at ifGenerationMatch of an upload in one request, and not of a resumable one. Google does so when an upload begins and
when it ends (https://cloud.google.com/storage/docs/request-preconditions). Requests that create are answered one after the other."""

import http.client
import json
import re
import sys
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock

own, behind = int(sys.argv[1]), int(sys.argv[2])
turn = Lock()
conditional = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def ask(self, method, path, body=None, headers=None):
        connection = http.client.HTTPConnection("127.0.0.1", behind, timeout=60)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, answer.getheaders(), content

    def reply(self, status, headers, content):
        self.send_response_only(status)
        length = len(content)
        for name, value in headers:
            if name.lower() == "content-length" and self.command == "HEAD":
                length = value
            elif name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def is_taken(self, bucket, name):
        path = f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
        return self.ask("GET", path)[0] == 200

    def forward(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if len(body) < length:
            # A client that gave up: the emulator would wait for the rest.
            self.close_connection = True
            return None
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        begins = query.get("uploadType") == "resumable" and self.command == "POST"
        upload = query.get("upload_id")
        ends = upload and re.search(r"/\d+$", self.headers.get("Content-Range") or "")
        named = None
        if begins and query.get("ifGenerationMatch") == "0":
            named = (re.search(r"/b/([^/]+)/o", url.path)[1], query["name"])
        elif ends:
            named = conditional.get(upload)
        headers = {n: v for n, v in self.headers.items() if n.lower() not in ("host", "connection")}
        with turn:
            if named and self.is_taken(*named):
                reason = {"error": {"code": 412, "message": "conditionNotMet", "errors": [{"reason": "conditionNotMet"}]}}
                return self.reply(412, [("Content-Type", "application/json")], json.dumps(reason).encode())
            status, answered, content = self.ask(self.command, self.path, body, headers)
            if begins and named:
                location = dict((n.lower(), v) for n, v in answered).get("location", "")
                conditional[urllib.parse.parse_qs(urllib.parse.urlsplit(location).query)["upload_id"][0]] = named
        return self.reply(status, answered, content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = forward


ThreadingHTTPServer(("127.0.0.1", own), Handler).serve_forever()
