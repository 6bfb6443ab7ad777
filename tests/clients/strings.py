"""Usage: strings.py CLIENT STRING...

Connects a client as each string says; they are those of man/zenith-clients.7. Prints for each the branch that it reached,
and what the session says that it is.
"""

import sys

SQL = "select name || ' ' || current_setting('zenith.branch') from whoami"


def psycopg(string):
    import psycopg

    with psycopg.connect(string) as connection:
        return connection.execute(SQL).fetchone()[0]


def psycopg2(string):
    import psycopg2

    cursor = psycopg2.connect(string).cursor()
    cursor.execute(SQL)
    return cursor.fetchone()[0]


def sqlalchemy(string):
    import sqlalchemy

    with sqlalchemy.create_engine(string).connect() as connection:
        return connection.exec_driver_sql(SQL).scalar()


def asyncpg(string):
    import asyncio

    import asyncpg

    async def ask():
        connection = await asyncpg.connect(string)
        answer = await connection.fetchval(SQL)
        await connection.close()
        return answer

    return asyncio.run(ask())


def pg8000(string):
    import pg8000.native

    connection = eval(f"pg8000.native.Connection({string})")
    answer = connection.run(SQL)[0][0]
    connection.close()
    return answer


for string in sys.argv[2:]:
    print(globals()[sys.argv[1].lower()](string))
