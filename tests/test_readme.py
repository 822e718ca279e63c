"""What the README shows is run as it stands, but for the names of the store and the data set."""

import re
from collections import Counter
from pathlib import Path

import duckdb
from conftest import published

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()


def test_the_sql_reads_the_current_view_and_nothing_else(night):
    night.write("a.parquet", range(10))
    config, version = night.config(input={"shard_images": 5}), night.seal()
    night.whole(config, version)
    (night.data / "a.parquet").unlink()
    night.write("b.parquet", range(7))
    assert night.whole(config, version).n == 2
    (sql,) = re.findall(r"```sql\n(.*?)```", README, re.DOTALL)
    sql = sql.replace("store/", f"{night.store.url}/").replace("flowers5", config.dataset)
    connection = duckdb.connect()
    *before, last = [statement for statement in sql.split(";") if statement.strip()]
    for statement in before:
        connection.execute(statement)
    assert dict(connection.execute(last).fetchall()) == Counter(
        row[1] for row in published(night.store, config.dataset)
    )
