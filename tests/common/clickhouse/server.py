"""ClickHouse's engine behind as much of its HTTP interface as clients use.

    server.py FOLDER [PORT]

Prints `listening on PORT` when it answers. One query runs at a time, and there are no users. What a query sets by the
address (`?insert_deduplication_token=..`) holds for inserts. Answers are compressed where they are asked for so.
"""

import os
import re
import struct
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import lz4.block
from chdb.session import Session
from clickhouse_cityhash.cityhash import CityHash128

# Parameters of the address that are no settings of a query.
NO_SETTINGS = {
    "compress", "database", "decompress", "default_format", "password", "query", "query_id", "role", "session_id", "user",
    "wait_end_of_query",
}
LZ4 = 0x82
# A block is a hash of 16 bytes, the method, the length from there on, the length of what is in it, and that.
HASH_BYTES, HEAD_BYTES = 16, 9
FORMAT = re.compile(r"\s+FORMAT\s+(\w+)\s*;?\s*$", re.IGNORECASE)

session = Session(sys.argv[1])
one_at_a_time = threading.Lock()


def decompress(data):
    blocks, place = [], 0
    while place < len(data):
        method, length, size = struct.unpack_from("<BII", data, place + HASH_BYTES)
        if method != LZ4:
            raise ValueError(f"compression {method:#x} is not known")
        end = place + HASH_BYTES + length
        blocks.append(lz4.block.decompress(data[place + HASH_BYTES + HEAD_BYTES:end], uncompressed_size=size))
        place = end
    return b"".join(blocks)


def compress(data):
    block = lz4.block.compress(data, store_size=False)
    block = struct.pack("<BII", LZ4, len(block) + HEAD_BYTES, len(data)) + block
    digest = CityHash128(block)
    return struct.pack("<QQ", digest >> 64, digest & (2**64 - 1)) + block


def quoted(text):
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def run(query, output, database):
    with one_at_a_time:
        session.query("USE `" + (database or "default").replace("`", "\\`") + "`")
        return session.query(query, output).bytes() or b""


def insert(query, data, settings, database):
    """The engine reads rows from a file, not from a request."""
    form = FORMAT.search(query)
    with tempfile.NamedTemporaryFile() as rows:
        rows.write(data)
        rows.flush()
        statement = f"{query[:form.start()]} FROM INFILE {quoted(rows.name)}"
        if settings:
            statement += " SETTINGS " + ", ".join(f"{name} = {quoted(value)}" for name, value in settings.items())
        return run(f"{statement} FORMAT {form[1]}", "TabSeparated", database)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def content(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def answer(self, status, content, **fields):
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **fields}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self):
        address = urlsplit(self.path)
        if address.path == "/ping" or not address.query:
            self.answer(200, b"Ok.\n")
        else:
            self.do_POST()

    def do_POST(self):
        given = dict(parse_qsl(urlsplit(self.path).query, keep_blank_values=True))
        try:
            content = self.content()
        except ValueError:
            # The client left within a chunk, as it does when it gives an insert up.
            self.close_connection = True
            return
        try:
            if content and given.get("decompress") == "1":
                content = decompress(content)
            query = given.get("query", "")
            if not query:
                query, content = content.decode(), b""
            settings = {name: value for name, value in given.items() if name not in NO_SETTINGS and name[:6] != "param_"}
            database = given.get("database")
            form = FORMAT.search(query)
            if re.match(r"\s*INSERT\b", query, re.IGNORECASE) and form:
                result = insert(query, content, settings, database)
            else:
                output = form[1] if form else given.get("default_format", "TabSeparated")
                result = run(query[:form.start()] if form else query, output, database)
            if result and given.get("compress") == "1":
                result = compress(result)
            self.answer(200, result)
        except Exception as error:
            code = re.search(r"Code: (\d+)", str(error))
            self.answer(500, str(error).encode(), X_ClickHouse_Exception_Code=code[1] if code else 0)


server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2]) if len(sys.argv) > 2 else 0), Handler)
print("listening on", server.server_address[1], flush=True)
# Whoever started it holds its input open; when that ends, so does the server.
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
