"""Usage: clients.py CLIENT HOST PORT BRANCH

Each client names the branch in its own way and does the same: asks which branch it is on, runs a transaction, copies
rows in and out, and has a query cancelled. Prints "ok".
"""

import asyncio
import socket
import ssl
import struct
import sys
import threading
import time

ROWS = 20_000


def check(what, found, expected):
    if found != expected:
        raise SystemExit(f"{what}: {found!r} rather than {expected!r}")


def psycopg_options(host, port, branch, **more):
    import psycopg

    arguments = {"host": host, "port": port, "user": "postgres", "dbname": "postgres"} | more
    if not more.pop("is_named", False):
        arguments["options"] = f"-c branch={branch}"
    arguments.pop("is_named", None)
    with psycopg.connect(**arguments) as connection:
        check("branch", connection.execute("select name from whoami").fetchone(), (branch,))
        with connection.transaction():
            connection.execute("create temp table t (i int, filler text)")
            with connection.cursor().copy("copy t from stdin") as copy:
                for i in range(ROWS):
                    copy.write_row((i, "x" * 100))
        with connection.cursor().copy("copy t to stdout") as copy:
            check("copy", sum(1 for _ in copy.rows()), ROWS)
        with connection.pipeline():
            answers = [connection.execute("select %s::int", (i,)) for i in range(100)]
        check("pipeline", [answer.fetchone()[0] for answer in answers], list(range(100)))
        timer = threading.Timer(0.5, connection.cancel)
        timer.start()
        try:
            connection.execute("select pg_sleep(30)")
            raise SystemExit("was not cancelled")
        except psycopg.errors.QueryCanceled:
            pass


def psycopg_database(host, port, branch):
    psycopg_options(host, port, branch, dbname=f"postgres@{branch}", is_named=True)


def psycopg_tls(host, port, branch):
    psycopg_options(host, port, branch, sslmode="require")


def psycopg_sni(host, port, branch):
    psycopg_options(f"{branch}.localhost", port, branch, hostaddr="127.0.0.1", sslmode="require", is_named=True)


def psycopg_direct_tls(host, port, branch):
    psycopg_options(host, port, branch, sslmode="require", sslnegotiation="direct")


def psycopg_latest_protocol(host, port, branch):
    psycopg_options(host, port, branch, max_protocol_version="latest")


def asyncpg(host, port, branch):
    import asyncpg

    async def run():
        connection = await asyncpg.connect(
            host=host, port=port, user="postgres", database="postgres", ssl=False, server_settings={"branch": branch}
        )
        check("branch", await connection.fetchval("select name from whoami"), branch)
        async with connection.transaction():
            await connection.execute("create temp table t (i int)")
            await connection.copy_records_to_table("t", records=[(i,) for i in range(ROWS)])
        check("copy", await connection.fetchval("select count(*) from t"), ROWS)
        try:
            # Its time-out sends a request to cancel.
            await connection.execute("select pg_sleep(30)", timeout=0.5)
            raise SystemExit("was not cancelled")
        except asyncio.TimeoutError:
            pass
        check("after", await connection.fetchval("select 1"), 1)
        # Many queries without waiting for their answers, and notifications.
        heard = asyncio.get_running_loop().create_future()
        await connection.add_listener("news", lambda *rest: heard.set_result(rest[-1]))
        await connection.execute("notify news, 'hello'")
        check("notification", await asyncio.wait_for(heard, 5), "hello")
        await connection.close()

    asyncio.run(run())


def pg8000(host, port, branch):
    import io

    import pg8000.native

    connection = pg8000.native.Connection(
        "postgres", host=host, port=port, database="postgres", startup_params={"branch": branch}
    )
    check("branch", connection.run("select name from whoami"), [[branch]])
    connection.run("begin")
    connection.run("create temp table t (i int)")
    connection.run("copy t from stdin", stream=io.StringIO("".join(f"{i}\n" for i in range(ROWS))))
    connection.run("commit")
    out = io.StringIO()
    connection.run("copy t to stdout", stream=out)
    check("copy", out.getvalue().count("\n"), ROWS)
    connection.close()


def pg8000_user(host, port, branch):
    import pg8000.native

    connection = pg8000.native.Connection(f"postgres@{branch}", host=host, port=port, database="postgres")
    check("branch", connection.run("select name from whoami"), [[branch]])
    connection.close()


def tls_without_alpn(host, port, branch):
    """Direct TLS of a client that offers no protocol; and its half-closed connection."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection((host, int(port))), server_hostname="localhost") as stream:
        body = b"user\0postgres\0database\0postgres\0branch\0" + branch.encode() + b"\0\0"
        stream.sendall(struct.pack("!II", 8 + len(body), 3 << 16) + body)
        answer = b""
        while b"Z\0\0\0\x05I" not in answer:
            answer += stream.recv(4096) or sys.exit("the connection ended")
        query = b"select name from whoami\0"
        stream.sendall(b"Q" + struct.pack("!I", 4 + len(query)) + query)
        time.sleep(0.2)
        check("branch", branch.encode() in stream.recv(65536), True)


globals()[sys.argv[1]](*sys.argv[2:])
print("ok")
