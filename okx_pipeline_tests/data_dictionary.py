"""docs/data-dictionary.md, made from the database's own comments and the schema of the Parquet files.

``python -m okx_pipeline_tests.data_dictionary`` writes the page anew; a test holds it against the database.
"""

import tempfile
from pathlib import Path
from typing import Final, LiteralString

from okx_pipeline.storage.database import Connection, Database
from okx_pipeline.storage.embedded import EmbeddedPostgres
from okx_pipeline.storage.migrations import migrate
from okx_pipeline.storage.parquet import ARROW_SCHEMA, DAY_HASHES_KEY, MONTH_HASH_KEY, SeriesMonth
from okx_pipeline.timeframes import month_of

PAGE: Final = Path(__file__).parents[1] / "docs" / "data-dictionary.md"
EXAMPLE: Final = SeriesMonth("BTC-USDT-SWAP", "5m", month_of(1_767_225_600_000))

_RELATIONS: Final[LiteralString] = """
SELECT class.oid::regclass::text, class.relkind = 'v', obj_description(class.oid)
FROM pg_class AS class
WHERE class.relnamespace = 'trading'::regnamespace AND class.relkind IN ('r', 'p', 'v') AND NOT class.relispartition
  AND class.relname !~ 'yoyo'
ORDER BY class.relname <> 'candlesticks', class.relname <> 'candles', class.relname
"""
_COLUMNS: Final[LiteralString] = """
SELECT attribute.attname, format_type(attribute.atttypid, attribute.atttypmod), attribute.attnotnull,
       coalesce(attribute.attnum = ANY(key.conkey), false), col_description(attribute.attrelid, attribute.attnum)
FROM pg_attribute AS attribute
LEFT JOIN pg_constraint AS key ON key.conrelid = attribute.attrelid AND key.contype = 'p'
WHERE attribute.attrelid = %s::regclass AND attribute.attnum > 0 AND NOT attribute.attisdropped
ORDER BY attribute.attnum
"""
_FUNCTIONS: Final[LiteralString] = """
SELECT format('%s(%s)', proc.oid::regproc, pg_get_function_identity_arguments(proc.oid)),
       pg_get_function_result(proc.oid), obj_description(proc.oid)
FROM pg_proc AS proc
WHERE proc.pronamespace = 'trading'::regnamespace AND obj_description(proc.oid) IS NOT NULL
ORDER BY 1
"""
_SHORTER: Final = {"timestamp with time zone": "timestamptz"}

_HEAD: Final = """\
# Data dictionary

Made by `make docs` from the comments in the database, and held against it by a test. In psql the same is
`\\dt+ trading.*` and `\\d+ trading.candlesticks`.

Times are Unix milliseconds UTC (`…_ms`) or `timestamptz`; days and months are UTC. A candle belongs to the day and the
month that it opens in. **Bold** columns are the key; ○ marks those that may be null.

## PostgreSQL, schema `trading`

"""

_PARQUET: Final = """\
## Parquet

One file a series and month, rows in key order:

`{path}`

`timeframe`, `symbol` and `month` stand in the path alone, as Hive partitions. No value is null.

| column | type | |
|---|---|---|
{columns}

| metadata of the file | |
|---|---|
| `{days}` | JSON object: of every UTC day with rows its SHA-256, each what `trading.content_hash` says of that day |
| `{month}` | SHA-256 of the month: over the lines `YYYY-MM-DD hash` of those days |

Pages carry checksums, which a reader has to ask for: `pyarrow.parquet.read_table(…, page_checksum_verification=True)`.
"""


def page(connection: Connection) -> str:
    """The page, from a migrated database."""
    meanings: dict[str, str] = {}
    sections = []
    for name, is_view, comment in connection.execute(_RELATIONS).fetchall():
        rows = []
        for column, kind, required, is_key, meaning in connection.execute(_COLUMNS, (name,)).fetchall():
            meanings.setdefault(column, meaning)
            shown = f"**`{column}`**" if is_key else f"`{column}`"
            optional = "" if required or is_view else " ○"
            rows.append(f"| {shown} | {_SHORTER.get(kind, kind)}{optional} | {meaning} |")
        title = f"### {'View ' if is_view else ''}`{name}`"
        sections.append("\n".join([title, "", f"{comment}.", "", "| column | type | |", "|---|---|---|", *rows, ""]))
    functions = [
        f"| `{signature}` | {_SHORTER.get(result, result)} | {comment} |"
        for signature, result, comment in connection.execute(_FUNCTIONS).fetchall()
    ]
    sections.append("\n".join(["### Functions", "", "| function | returns | |", "|---|---|---|", *functions, ""]))
    columns = [f"| `{field.name}` | {field.type} | {meanings[field.name]} |" for field in ARROW_SCHEMA]
    parquet = _PARQUET.format(
        path=EXAMPLE.path, columns="\n".join(columns), days=DAY_HASHES_KEY.decode(), month=MONTH_HASH_KEY.decode()
    )
    return _HEAD + "\n".join([*sections, parquet])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, EmbeddedPostgres(Path(folder)) as embedded:
        database = Database(embedded.url)
        migrate(database)
        with database.connect() as opened:
            PAGE.parent.mkdir(exist_ok=True)
            PAGE.write_text(page(opened))
